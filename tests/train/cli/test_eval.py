"""`mtllm-edge eval` on tiny models: all four systems, resuming, and invalid input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
import transformers
from safetensors.numpy import save_file

from mtllm_edge import Classifier
from mtllm_edge.cli.main import main
from mtllm_edge.inputs import Input, parts_of
from mtllm_edge.translator import Translator
from mtllm_edge_export.translator import export_translator
from mtllm_edge_train.checkpoints.config import CHECKPOINT_VERSION, CONFIG_NAME, LlmConfig, StackConfig, TaskConfig
from mtllm_edge_train.data.labeled import read_labeled
from mtllm_edge_train.evaluation.bootstrap import score
from mtllm_edge_train.evaluation.checkpoint_classifier import CheckpointClassifier
from mtllm_edge_train.evaluation.report import Report
from tests.fixtures.subprocesses import imported_by
from tests.fixtures.tiny_bundle import make_tiny_bundle
from tests.fixtures.tiny_checkpoint import save_checkpoint, save_llm
from tests.train.multilingual import test_train_translator

LABELS = ("a", "b", "c", "d")
LANGUAGES = ("deu_Latn", "eng_Latn", "tam_Taml")
WORDS = {"deu_Latn": "abba dada", "eng_Latn": "head dab", "tam_Taml": "bad egg"}
ROWS = [
    {
        "lang": language,
        "text": f"{WORDS[language]} {'abcdefgh'[number % 8]} {'bcdefgha'[number // 3]}",
        "topic": LABELS[number % 4],
        "split": split,
    }
    for language in LANGUAGES
    for split, count in (("train", 20), ("test", 12))
    for number in range(count)
]


TASKS = {
    "topic": TaskConfig(kind="sequence", labels=LABELS),
    "nli": TaskConfig(kind="pair", labels=("no", "yes")),
    "copa": TaskConfig(kind="multiple_choice", labels=()),
}


def save_teacher(folder: Path, tasks: dict[str, TaskConfig]) -> Path:
    """Write a fine-tuned LLM: a tiny Llama with a tokenizer of a few letters and random heads."""
    save_llm(folder / "llm")
    tokenizer = tokenizers.Tokenizer.from_str(test_train_translator.tokenizer_json())
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(folder / "llm")
    config = StackConfig(
        checkpoint_version=CHECKPOINT_VERSION,
        name="teacher",
        encoder=None,
        llm=LlmConfig(source="llm", layers=None, attention="causal"),
        lora=None,
        tasks=tasks,
        sources=(),
    )
    (folder / "tasks").mkdir(parents=True)
    (folder / CONFIG_NAME).write_bytes(config.to_json())
    for name, task in tasks.items():
        head = {"weight": np.random.default_rng(0).standard_normal((task.rows, 64)).astype(np.float32)}
        save_file(head, folder / "tasks" / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, a teacher, a translator and rows; read-only."""
    folder = tmp_path_factory.mktemp("eval")
    labels, kinds = ({name: getattr(task, field) for name, task in TASKS.items()} for field in ("labels", "kind"))
    make_tiny_bundle(folder / "bundle", tasks=labels, kinds=kinds)
    save_teacher(folder / "teacher", TASKS)
    other = {"topic": TaskConfig(kind="sequence", labels=("a", "b")), "nli": TASKS["copa"]}
    save_teacher(folder / "other_teacher", other)
    more_tasks = {name: task for name, task in TASKS.items() if name != "topic"}
    save_checkpoint(folder / "nllb", family="m2m_100", more_tasks=more_tasks)
    test_train_translator.run(folder / "trained", test_train_translator.tiny_bert(folder / "bert"), steps=1)
    export_translator(folder / "trained", folder / "translator", quantization="float32", force=False)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    for task, convert in (("nli", as_pair), ("copa", as_question)):
        table = pyarrow.Table.from_pylist([convert(number, row) for number, row in enumerate(ROWS)])
        pyarrow.parquet.write_table(table, folder / f"{task}.parquet")
    return folder


def as_pair(number: int, row: dict[str, str]) -> dict[str, Any]:
    """A pair that asks whether both texts are equal."""
    same = number % 3 == 0
    second = row["text"] if same else "cede fa"
    return {"lang": row["lang"], "split": row["split"], "text": row["text"], "text_pair": second} | {
        "label": "yes" if same else "no"
    }


def as_question(number: int, row: dict[str, str]) -> dict[str, Any]:
    """A question which choice equals the text."""
    choices = ["cede fa", "egg hag"]
    choices.insert(number % 3, row["text"])
    return {"lang": row["lang"], "split": row["split"], "text": row["text"], "choices": choices, "label": number % 3}


def arguments(folder: Path, model: str = "bundle") -> list[str]:
    rows = str(folder / "rows.parquet")
    return ["eval", str(folder / model), rows, "-t", "topic", "--label-column", "topic", "--where", "split=test"]


def baselines(folder: Path) -> list[str]:
    train = ["--train", str(folder / "rows.parquet"), "--train-where", "split=train", "--train-where", "lang=eng_Latn"]
    return [*train, "--teacher", str(folder / "teacher"), "--translator", str(folder / "translator")]


def test_importing_the_command_imports_nothing_heavy() -> None:
    assert not {"torch", "transformers", "pyarrow", "matplotlib"} & imported_by("mtllm_edge_train.cli.evaluate")


def test_all_four_systems_on_a_bundle(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([*arguments(folder), *baselines(folder), "-o", str(out)]) == 0
    report = msgspec.json.decode((out / "eval.json").read_bytes(), type=Report)
    assert [*report.systems] == ["mt_llm", "encoder_alone", "translate_test", "llm_alone"]
    assert [group.name for group in report.groups] == ["eng_Latn", "all others"]
    assert [row.name for row in report.per_language] == [*LANGUAGES]

    with Classifier.load(folder / "bundle", task="topic", threads=1) as classifier:
        stack = [p.label for p in classifier.classify([row["text"] for row in ROWS])]
    teacher = CheckpointClassifier(folder / "teacher")
    read = teacher.predict("topic", [row["text"] for row in ROWS])
    translations = Translator.load(folder / "translator", threads=1).translate([row["text"] for row in ROWS])
    translated = teacher.predict("topic", [text if text.strip() else "." for text in translations])
    for system, predictions in (("mt_llm", stack), ("llm_alone", read), ("translate_test", translated)):
        for row in report.per_language:
            places = [i for i, data in enumerate(ROWS) if data["lang"] == row.name and data["split"] == "test"]
            expected = score([ROWS[i]["topic"] for i in places], [predictions[i] for i in places])
            measured = row.scores[system]
            assert measured["accuracy"].value == pytest.approx(expected["accuracy"], abs=1e-4)
            assert measured["macro_f1"].value == pytest.approx(expected["macro_f1"], abs=1e-4)
            assert measured["accuracy"].low <= measured["accuracy"].value <= measured["accuracy"].high
    for row in [*report.groups, *report.per_language]:
        for baseline, ahead in row.ahead.items():
            difference = row.scores["mt_llm"]["macro_f1"].value - row.scores[baseline]["macro_f1"].value
            assert ahead["macro_f1"].value == pytest.approx(difference, abs=2e-4)

    written = capsys.readouterr().out
    summary = json.loads(written.splitlines()[-1])
    assert summary["groups"][1]["languages"] == 2
    assert "translate-test" in written
    assert (out / "eval.png").read_bytes().startswith(b"\x89PNG")
    assert "| tam_Taml | 12 |" in (out / "eval.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.name for path in out.iterdir()) == ["eval.json", "eval.md", "eval.png"]


def test_the_encoder_alone_learns_the_training_rows(folder: Path, tmp_path: Path) -> None:
    words = {"a": "abba", "b": "dab", "c": "egg", "d": "fadhe"}
    rows = [
        {"text": f"{words[label]} {sign}", "lang": "eng_Latn", "label": label} for sign in "abcdefgh" for label in words
    ]
    folder_of_rows = tmp_path / "rows"
    folder_of_rows.mkdir()
    for name, lines in (("train", rows[:20]), ("test", rows[20:])):
        (folder_of_rows / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    data_set = f"hub:{folder_of_rows}:default"  # the files' names are those of its splits
    for model, test, train in (
        ("bundle", folder_of_rows / "test.jsonl", folder_of_rows / "train.jsonl"),
        ("nllb", f"{data_set}:test", f"{data_set}:train"),
    ):
        files = [str(test), "--train", str(train)]
        assert main(["eval", str(folder / model), *files, "-t", "topic", "-o", str(tmp_path / model)]) == 0
        report = msgspec.json.decode((tmp_path / model / "eval.json").read_bytes(), type=Report)
        assert report.groups[0].scores["encoder_alone"]["accuracy"].value >= 0.9
        assert report.groups[0].scores["mt_llm"]["accuracy"].value < 0.9  # of random weights
        assert [*report.left_out] == ["translate_test", "llm_alone"]


@pytest.mark.parametrize(("task", "model"), [("nli", "bundle"), ("copa", "nllb")])
def test_all_four_systems_on_pairs_and_choices(folder: Path, tmp_path: Path, task: str, model: str) -> None:
    source = str(folder / f"{task}.parquet")
    train = ["--train", source, "--train-where", "split=train", "--train-where", "lang=eng_Latn"]
    english = ["--teacher", str(folder / "teacher"), "--translator", str(folder / "translator")]
    command = ["eval", str(folder / model), source, "-t", task, "--where", "split=test", *train, *english]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    report = msgspec.json.decode((tmp_path / "out" / "eval.json").read_bytes(), type=Report)
    teacher = CheckpointClassifier(folder / "teacher")
    stack = CheckpointClassifier(folder / model) if model == "nllb" else None
    data, engine = read_labeled(source), Translator.load(folder / "translator", threads=1)
    with Classifier.load(folder / "bundle", task=task, threads=1) as classifier:
        for row in report.per_language:
            indices = [i for i, r in enumerate(ROWS) if r["lang"] == row.name and r["split"] == "test"]
            items, labels = [data.inputs[i] for i in indices], [data.labels[i] for i in indices]
            translated: list[Input] = []
            for item in items:
                texts = [text if text.strip() else "." for text in engine.translate(parts_of(item))]
                translated.append((texts[0], texts[1] if task == "nli" else texts[1:]))
            expected = {
                "mt_llm": stack.predict(task, items, language=row.name)
                if stack
                else [prediction.label for prediction in classifier.classify(items)],
                "llm_alone": teacher.predict(task, items),
                "translate_test": teacher.predict(task, translated),
            }
            for system, predictions in expected.items():
                measured = row.scores[system]["accuracy"].value
                assert measured == pytest.approx(score(labels, predictions)["accuracy"], abs=1e-4), (system, row.name)
            assert row.scores["encoder_alone"]["accuracy"].value >= 0.9
            assert row.scores["mt_llm"]["accuracy"].value < 0.9  # of random weights


def test_a_checkpoint_gets_the_language_of_each_text(folder: Path, tmp_path: Path) -> None:
    assert main([*arguments(folder, "nllb"), "-o", str(tmp_path / "out")]) == 0
    report = msgspec.json.decode((tmp_path / "out" / "eval.json").read_bytes(), type=Report)
    stack = CheckpointClassifier(folder / "nllb")
    for row in report.per_language:
        data = [data for data in ROWS if data["lang"] == row.name and data["split"] == "test"]
        predictions = stack.predict("topic", [data["text"] for data in data], language=row.name)
        expected = score([data["topic"] for data in data], predictions)
        assert row.scores["mt_llm"]["accuracy"].value == pytest.approx(expected["accuracy"], abs=1e-4)


def test_an_interrupted_evaluation_resumes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*arguments(folder), *baselines(folder), "-o", str(tmp_path / "out")]
    translate = Translator.translate
    calls: list[list[str]] = []

    def interrupted(self: Translator, texts: list[str]) -> list[str]:
        calls.append(texts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return translate(self, texts)

    def not_again(*_: Any, **__: Any) -> None:
        raise AssertionError("cached predictions are computed again")

    monkeypatch.setattr(Translator, "translate", interrupted)
    assert main(command) == 130
    assert "stopped; repeat the command to resume" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    monkeypatch.setattr(Classifier, "load", not_again)
    assert main(command) == 0
    assert len(calls) == 4  # one language was translated before, two are now
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    assert main([*command[:-1], str(tmp_path / "whole")]) == 0
    assert (tmp_path / "out" / "eval.json").read_bytes() == (tmp_path / "whole" / "eval.json").read_bytes()


def test_a_cache_is_kept_and_an_evaluation_is_not_overwritten(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*arguments(folder), "--cache", str(tmp_path / "cache"), "-o", str(tmp_path / "out")]
    assert main(command) == 0
    assert len([*(tmp_path / "cache").iterdir()]) == len(LANGUAGES)
    monkeypatch.setattr(Classifier, "load", None)
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0


INVALID: list[tuple[list[str], int, str]] = [
    (["--label-column", "genre"], 2, "rows.parquet row 21 has no column 'genre', only 'lang', 'text'"),
    (["--text-column", "body"], 2, "has no column 'body'"),
    (["--language-column", "code"], 2, "has no column 'code'"),
    (["--label-column", "split"], 1, "task 'topic' has no label 'test', which rows in deu_Latn have"),
    (["--where", "lang=fra_Latn"], 1, "no row has lang=fra_Latn beside the other conditions"),
    (["--where", "century=20"], 2, "has no column 'century'"),
    (["--where", "split"], 2, "'split' is not COLUMN=VALUE"),
    (["-t", "mood"], 2, "has no task 'mood'; its tasks: topic, nli"),
    (["-t", "nli"], 2, "rows.parquet row 21 has no column 'text_pair', only 'lang', 'text', 'topic', 'split'"),
    (["-t", "copa"], 2, "row 21 has no column 'choices', only"),
    (["--pair-column", "split"], 2, "--pair-column is for tasks of pairs, but the task is of the kind 'sequence'"),
    (["--teacher", "{}/nllb"], 2, "nllb has an encoder; --teacher is the LLM"),
    (["--teacher", "{}/other_teacher"], 2, "task 'topic' has the labels a, b in"),
    (["--teacher", "{}/bundle"], 1, "bundle holds no stack.json"),
    (["--translator", "{}/translator"], 2, "--translator needs --teacher"),
    (["--teacher", "{}/teacher", "--translator", "{}/trained"], 1, "trained has no translator.json"),
    (["--train", "{}/rows.parquet"], 2, "is a training row in deu_Latn, expected eng_Latn alone"),
    (["--train-where", "split=train"], 2, "--train-where chooses rows of --train"),
    (["--seen", "{}/nothing"], 2, "nothing does not exist"),
]


@pytest.mark.parametrize(("options", "code", "message"), INVALID)
def test_invalid_options_are_an_error_of_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    out = tmp_path / "out"
    filled = [part.replace("{}", str(folder)) for part in options]
    assert main([*arguments(folder), *filled, "-o", str(out)]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_a_teacher_of_another_kind_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", str(folder / "bundle"), str(folder / "nli.parquet"), "-t", "nli"]
    assert main([*command, "--teacher", str(folder / "other_teacher"), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "task 'nli' is of the kind 'multiple_choice' in" in error
    assert "but 'pair' in tiny; give the teacher of this model" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "rows.jsonl holds no rows"),
        ('{"text": 5, "lang": "deu_Latn", "label": "a"}\n', "column 'text', is a number, expected a string"),
        ('{"text": "x", "lang": 5, "label": "a"}\n', "rows.jsonl line 1 has the language 5"),
        (
            '{"text": "x", "lang": "fra_Latn", "label": "a"}\n',
            "error: the encoder has no token for the language fra_Latn",
        ),
    ],
)
def test_invalid_rows_are_an_error_of_one_line(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(content)
    assert main(["eval", str(folder / "nllb"), str(rows), "-t", "topic", "-o", str(tmp_path / "out")]) in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_folder_without_a_model_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(folder, "bert"), "-o", str(tmp_path / "out")]) == 1
    assert "holds neither bundle.json nor stack.json" in capsys.readouterr().err


def test_an_llm_without_encoder_is_evaluated_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*arguments(folder, "teacher"), "--language", "eng_Latn", "-o", str(tmp_path / "out")]
    assert main([*command, *baselines(folder)]) == 2
    assert "is an LLM without an encoder, which has no baselines; leave out --train" in capsys.readouterr().err
    assert main(command) == 0
    report = msgspec.json.decode((tmp_path / "out" / "eval.json").read_bytes(), type=Report)
    assert ([*report.systems], report.left_out, report.groups[0].name) == (["llm_alone"], {}, "eng_Latn")
    rows = [row for row in ROWS if row["split"] == "test"]
    predictions = CheckpointClassifier(folder / "teacher").predict("topic", [row["text"] for row in rows])
    expected = score([row["topic"] for row in rows], predictions)
    assert report.groups[0].scores["llm_alone"]["accuracy"].value == pytest.approx(expected["accuracy"], abs=1e-4)
