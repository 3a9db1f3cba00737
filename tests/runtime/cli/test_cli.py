from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mtllm_edge import Classifier, Embedder
from tests.fixtures.cli_result import Result, Run
from tests.fixtures.tiny_bundle import MAX_TOKENS, N_EMBD
from tests.fixtures.tolerances import LLAMA_CPP, assert_probabilities_close

TEXTS = ["the team is good", "не хорошо", "中国 在 这 里"]


@pytest.fixture
def classify(run: Run, tiny_bundle: Path) -> Run:
    """Run `classify` on the task `topic` of the tiny bundle."""
    return lambda *arguments, stdin=b"": run("classify", "-b", tiny_bundle, "-t", "topic", *arguments, stdin=stdin)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> list[tuple[str, float]]:
    """Labels and confidences of `TEXTS` from the Python interface."""
    with Classifier.load(tiny_bundle, task="topic") as classifier:
        return [(prediction.label, prediction.confidence) for prediction in classifier.classify(TEXTS)]


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_output_in_a_pipe_is_csv(classify: Run, expected: list[tuple[str, float]]) -> None:
    result = classify(*TEXTS)
    assert result.code == 0
    rows = _rows(result.out)
    assert list(rows[0]) == ["text", "label", "confidence", "truncated"]
    assert [row["text"] for row in rows] == TEXTS
    assert [row["label"] for row in rows] == [label for label, _ in expected]
    assert_probabilities_close([float(row["confidence"]) for row in rows], [sure for _, sure in expected], LLAMA_CPP)
    assert result.err.startswith("3 texts in ")
    assert result.err.count("\n") == 1


def test_jsonl_output_has_all_probabilities(classify: Run) -> None:
    lines = [json.loads(line) for line in classify(*TEXTS, "--format", "jsonl").out.splitlines()]
    for line, text in zip(lines, TEXTS, strict=True):
        assert list(line) == ["text", "label", "confidence", "truncated", "probabilities"]
        assert line["text"] == text
        assert list(line["probabilities"]) == ["science", "sports", "travel"]
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert line["probabilities"][line["label"]] == line["confidence"]
        assert line["truncated"] is False


def test_control_characters_in_a_table_are_escaped(classify: Run) -> None:
    result = classify("[bold]text[/bold]", "a \x1b[31mred\nline", "long " * 100, "--format", "table")
    assert result.code == 0
    assert "[bold]text[/bold]" in result.out
    assert "\x1b" not in result.out
    assert "a  [31mred line" in result.out
    assert "…" in result.out
    assert "truncated" in result.out


def test_files_of_all_kinds_and_stdin_together(classify: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("id,review\n7,three\n", encoding="utf-8-sig")
    result = classify("zero", "a.txt", "b.csv", "-", "--text-column", "review", stdin=b"four\r\n")
    assert result.code == 0
    assert [(row["text"], row["id"], row["review"]) for row in _rows(result.out)] == [
        ("zero", "", ""),
        ("one", "", ""),
        ("two", "", ""),
        ("", "7", "three"),
        ("four", "", ""),
    ]
    assert result.err.splitlines()[0] == "note: 1 blank line left out"


def test_stdin_without_arguments(classify: Run) -> None:
    assert [row["text"] for row in _rows(classify(stdin=b"one\ntwo").out)] == ["one", "two"]


def test_input_columns_keep_their_names(classify: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,text,truncated\ngold,hello,\n")
    result = classify("a.csv")
    row = _rows(result.out)[0]
    assert list(row) == ["label", "text", "truncated", "predicted_label", "confidence", "predicted_truncated"]
    assert (row["label"], row["truncated"], row["predicted_truncated"]) == ("gold", "", "false")
    assert "note: the input has a column 'label'; the new one is called 'predicted_label'" in result.err


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.CSV"])
def test_the_file_name_selects_the_format(classify: Run, tmp_path: Path, name: str) -> None:
    form = name.lower().partition(".")[2]
    result = classify(*TEXTS, "-o", name)
    assert (result.code, result.out) == (0, "")
    assert (tmp_path / name).read_text(encoding="utf-8") == classify(*TEXTS, "--format", form).out
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_table_can_be_written_to_a_file(classify: Run, tmp_path: Path) -> None:
    classify(*TEXTS, "--format", "table", "-o", "out.txt")
    assert TEXTS[2] in (tmp_path / "out.txt").read_text(encoding="utf-8")


def test_an_output_is_replaced_only_with_force(classify: Run, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("mine")
    refused = classify("hello", "-o", "out.csv")
    assert refused.code == 2
    assert refused.err == "error: out.csv exists; add --force to replace it, or name another --output\n"
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert classify("hello", "-o", "out.csv", "--force").code == 0
    assert (tmp_path / "out.csv").read_text().startswith("text,label")


def test_a_text_of_100_000_characters_is_truncated_with_a_note(classify: Run) -> None:
    result = classify("word " * 20_000, "short")
    assert result.code == 0
    assert [row["truncated"] for row in _rows(result.out)] == ["true", "false"]
    assert f"note: 1 text longer than {MAX_TOKENS} tokens lost the end\n" in result.err


def test_embeddings_equal_those_of_the_python_interface(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    with Embedder.load(tiny_bundle) as embedder:
        expected_NE = embedder.embed(TEXTS)
    assert run("embed", "-b", tiny_bundle, *TEXTS, "-o", "out.npy").code == 0
    saved_NE = np.load(tmp_path / "out.npy", allow_pickle=False)
    assert saved_NE.shape == (len(TEXTS), N_EMBD)
    np.testing.assert_array_equal(saved_NE, expected_NE)
    lines = [json.loads(line) for line in run("embed", "-b", tiny_bundle, *TEXTS).out.splitlines()]
    assert [list(line) for line in lines] == [["text", "embedding", "truncated"]] * len(TEXTS)
    np.testing.assert_array_equal(np.array([line["embedding"] for line in lines], np.float32), expected_NE)


def test_embed_reports_truncation(run: Run, tiny_bundle: Path) -> None:
    result = run("embed", "-b", tiny_bundle, "word " * 1000, "-o", "out.jsonl")
    assert json.loads(Path("out.jsonl").read_bytes())["truncated"] is True
    assert "note: 1 text longer than" in result.err


def test_info_as_text_and_json(run: Run, fresh_bundle: Path) -> None:
    manifest = fresh_bundle / "bundle.json"
    manifest.write_text(manifest.read_text().replace("CC0-1.0", "CC-BY-NC-4.0", 1))
    result = run("info", fresh_bundle)
    assert result.code == 0
    for expected in ("tiny", "bert, float32", "f32 GGUF", "linear, 16 to 32", "science, sports, travel", "1.000000"):
        assert expected in result.out
    assert result.out.count("NON-COMMERCIAL USE ONLY") == 1
    assert run("info", fresh_bundle, "--json").out == manifest.read_text()


def test_info_of_a_strided_bridge(run: Run, tiny_variant: Callable[..., Path]) -> None:
    assert "strided, 3 states of 16 to 32" in run("info", tiny_variant(stride=3)).out


def test_verify(run: Run, tiny_bundle: Path) -> None:
    result = run("verify", tiny_bundle)
    assert (result.code, result.err) == (0, "")
    assert result.out == "9 files, 0.1 MB, all as recorded\n"


def test_verify_lists_all_damaged_files(run: Run, fresh_bundle: Path) -> None:
    for name in ("llm.gguf", "LICENSES/tiny.txt"):
        content = bytearray((fresh_bundle / name).read_bytes())
        content[-1] ^= 1
        (fresh_bundle / name).write_bytes(content)
    result = run("verify", fresh_bundle)
    assert (result.code, result.out) == (1, "")
    _assert_one_line(result, "llm.gguf")
    assert "LICENSES/tiny.txt" in result.err


def test_help_and_version(run: Run) -> None:
    result = run("--help")
    assert (result.code, result.err) == (0, "")
    for name in ("classify", "embed", "info", "verify", "doctor"):
        assert f"  {name} " in result.out
        assert run(name, "-h").out.startswith(f"Usage: mtllm-edge {name} ")
    assert run().out == result.out
    assert run("--version").out.startswith("mtllm-edge, version ")


def _assert_one_line(result: Result, *mentioned: str) -> None:
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    assert "Traceback" not in result.err
    for words in mentioned:
        assert words in result.err


WRONG_CALLS = {
    "no such command": (["clasify"], "Did you mean"),
    "no bundle": (["classify", "text"], "Missing option '-b'"),
    "no such option": (["classify", "-b", "B", "--frce", "text"], "--frce"),
    "threads": (["classify", "-b", "B", "-t", "topic", "--threads", "0", "text"], "'--threads'"),
    "format": (["classify", "-b", "B", "--format", "xml", "text"], "'xml'"),
    "output of no kind": (["classify", "-b", "B", "-o", "out.xls", "text"], "out.xls should end in .csv, .tsv, "),
    "npy is for embed": (["embed", "-b", "B", "-o", "out.csv", "text"], "should end in .npy, .jsonl or .parquet"),
    "no task named": (["classify", "-b", "B", "text"], "topic, sentiment"),
    "no such task": (["classify", "-b", "B", "-t", "mood", "text"], "'mood'"),
    "no such language": (["classify", "-b", "B", "-t", "topic", "--lang", "Germn", "text"], "did you mean German"),
    "no such file": (["classify", "-b", "B", "-t", "topic", "none.csv"], "none.csv does not exist"),
    "no such column": (["classify", "-b", "B", "-t", "topic", "in.csv"], "in.csv has no column 'text', only 'a', 'b'"),
    "no such folder": (["classify", "-b", "B", "-t", "topic", "x", "-o", "none/out.csv"], "the folder none does not"),
    "no such bundle": (["classify", "-b", "nowhere", "text"], "nowhere"),
    "file as bundle": (["classify", "-b", "in.csv", "text"], "in.csv"),
    "info of nothing": (["info", "nowhere"], "nowhere"),
    "verify of nothing": (["verify", "nowhere"], "nowhere"),
    "doctor of nothing": (["doctor", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_invalid_arguments(run: Run, tiny_bundle: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "in.csv").write_text("a,b\n1,2\n")
    result = run(*(str(tiny_bundle) if argument == "B" else argument for argument in arguments))
    assert (result.code, result.out) == (2, "")
    _assert_one_line(result, message)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


BAD_INPUTS = {
    "empty argument": ([" "], b"", "argument 1 is empty"),
    "empty file": (["in.txt"], b"", "in.txt holds no text"),
    "empty cell": (["in.csv"], b"text\nx\n \n", "in.csv row 3, column 'text'"),
    "latin-1": (["in.txt"], b"fine\ncaf\xe9\n", "in.txt line 2 is not valid UTF-8 (byte 0xe9); save it as UTF-8"),
    "ragged": (["in.csv"], b"id,text\n1,a,b\n", "in.csv row 2"),
    "json": (["in.jsonl"], b'{"text": "a"}\n{text}\n', "in.jsonl line 2"),
}


@pytest.mark.parametrize(("arguments", "content", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_invalid_inputs(classify: Run, tmp_path: Path, arguments: list[str], content: bytes, message: str) -> None:
    if "." in arguments[0]:
        (tmp_path / arguments[0]).write_bytes(content)
    before = list(tmp_path.iterdir())
    for how in (("-o", "out.csv", "--strict"), ()):  # without an output file, rejected rows cannot be written beside it
        result = classify(*arguments, *how)
        assert (result.code, result.out) == (1, "")
        _assert_one_line(result, message)
        assert list(tmp_path.iterdir()) == before


def _truncate_llm(bundle: Path) -> None:
    with (bundle / "llm.gguf").open("r+b") as file:
        file.truncate(1000)


def _raise_version(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    (bundle / "bundle.json").write_text(json.dumps(manifest | {"format_version": 99, "news": True}))


BAD_BUNDLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated llm": (_truncate_llm, "llm.gguf"),
    "newer version": (_raise_version, "bundle.json has format version 99"),
    "missing head": (lambda bundle: (bundle / "tasks/topic/head.safetensors").unlink(), "tasks/topic/head.safetensors"),
    "no manifest": (lambda bundle: (bundle / "bundle.json").unlink(), "bundle.json"),
    "broken manifest": (lambda bundle: _write(bundle / "bundle.json", b'{"format_version": 1'), "bundle.json"),
    "broken tokenizer": (lambda bundle: _flip(bundle / "tokenizer.json"), "tokenizer.json"),
    "missing encoder": (lambda bundle: shutil.rmtree(bundle / "encoder"), "encoder/model.bin"),
}


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _flip(path: Path) -> None:
    """Make a JSON file unreadable without changing its size."""
    path.write_bytes(b"[" + path.read_bytes()[1:])


@pytest.mark.parametrize("command", ["classify", "embed", "info", "verify", "doctor"])
@pytest.mark.parametrize(("damage", "message"), BAD_BUNDLES.values(), ids=BAD_BUNDLES)
def test_damaged_bundles(
    run: Run, fresh_bundle: Path, tmp_path: Path, command: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(fresh_bundle)
    arguments = {"classify": ["-t", "topic", "x", "-o", "out.csv", "-b"], "embed": ["x", "-o", "out.npy", "-b"]}
    result = run(command, *arguments.get(command, []), fresh_bundle)
    assert (result.code, result.out) == (1, "")
    _assert_one_line(result, message)
    assert list(tmp_path.iterdir()) == [fresh_bundle]


def test_an_os_error_is_one_line(classify: Run) -> None:
    name = "x" * 300 + ".csv"
    result = classify("text", "-o", name)
    assert result.code == 1
    _assert_one_line(result, name, "too long")


def test_a_bug_keeps_its_traceback(classify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Classifier, "classify", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        classify("text", "-o", "out.csv")
    assert not list(tmp_path.iterdir())
