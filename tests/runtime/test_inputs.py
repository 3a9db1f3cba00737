"""Pairs and texts with choices: tokenization, truncation, classification, errors."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from mtllm_edge import Bundle, Classifier, Embedder
from mtllm_edge.cli.main import main
from mtllm_edge.errors import DataError, ModelError
from mtllm_edge.tokenization.encoding import SpecialTokenTemplate, allocate_lengths, downsample_spans
from mtllm_edge.tokenization.tokenizer import Tokenizer
from tests.fixtures import tiny_bundle
from tests.fixtures.tolerances import LLAMA_CPP, assert_probabilities_close

PAIR = ("the team is good", "a bad match")
QUESTION = ("the hotel", ["is good", "is bad", "is a team"])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a task of every kind, whose tokenizer puts `</s></s>` between the texts of a pair."""
    folder = tiny_bundle.make_tiny_bundle(
        tmp_path_factory.mktemp("kinds") / "bundle",
        tasks={"topic": ("science", "sports"), "nli": ("no", "yes"), "copa": ()},
        kinds={"nli": "pair", "copa": "multiple_choice"},
    )
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, raw.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    raw.save(str(folder / "tokenizer.json"))
    tiny_bundle.write_manifest(
        folder,
        tasks={"topic": ("science", "sports"), "nli": ("no", "yes"), "copa": ()},
        kinds={"nli": "pair", "copa": "multiple_choice"},
    )
    return folder


@pytest.fixture(scope="module")
def raw(bundle: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Iterator[Classifier]:
    with Classifier.load(bundle, task="topic", threads=1) as loaded:
        yield loaded


def load(bundle: Path, max_tokens: int = 64) -> Tokenizer:
    return Tokenizer(bundle / "tokenizer.json", prefix_tokens=["<s>"], suffix_tokens=["</s>"], max_tokens=max_tokens)


def test_pairs_are_encoded_like_the_tokenizer_does(bundle: Path, raw: tokenizers.Tokenizer) -> None:
    (encoded,) = load(bundle).encode([PAIR])
    assert encoded.ids == raw.encode(*PAIR).ids
    assert (encoded.choice_spans, encoded.vector_count, encoded.truncated) == ((), 1, False)


def test_parts_are_concatenated_without_a_template(tiny_bundle: Path) -> None:
    (encoded,) = load(tiny_bundle).encode([PAIR])
    raw = tokenizers.Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    parts = [raw.encode(text, add_special_tokens=False).ids for text in PAIR]
    assert encoded.ids[1:-1] == parts[0] + parts[1]


def test_each_choice_has_a_span(bundle: Path, raw: tokenizers.Tokenizer) -> None:
    (encoded,) = load(bundle).encode([QUESTION])
    assert encoded.vector_count == 3
    for (begin, end), choice in zip(encoded.choice_spans, QUESTION[1], strict=True):
        assert encoded.ids[begin:end] == raw.encode(choice, add_special_tokens=False).ids
    (begin, _), *_ = encoded.choice_spans
    assert encoded.ids[:begin] == raw.encode(QUESTION[0], "a").ids[:begin]


@pytest.mark.parametrize("first", ["longer", "shorter"])
def test_the_longest_part_is_truncated_first(bundle: Path, raw: tokenizers.Tokenizer, first: str) -> None:
    """Like `longest_first` in transformers, its default for pairs."""
    raw = tokenizers.Tokenizer.from_str(raw.to_str())
    raw.enable_truncation(17, strategy="longest_first")
    pair = ("b" * 40, "abc") if first == "longer" else ("abc", "b" * 40)
    (encoded,) = load(bundle, 17).encode([pair])
    assert encoded.ids == raw.encode(*pair).ids
    assert encoded.truncated


def test_choices_are_kept_with_a_long_text(bundle: Path, raw: tokenizers.Tokenizer) -> None:
    (encoded,) = load(bundle, 20).encode([("x" * 1000, ["ab", "cd"])])
    assert (len(encoded.ids), encoded.truncated) == (20, True)
    for (begin, end), choice in zip(encoded.choice_spans, ["ab", "cd"], strict=True):
        assert encoded.ids[begin:end] == raw.encode(choice, add_special_tokens=False).ids


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 60))
def test_lengths_of_truncated_parts(lengths: list[int], extra: int) -> None:
    room = len(lengths) + extra
    shares = allocate_lengths(lengths, room)
    assert sum(shares) == min(room, sum(lengths))
    assert all(1 <= own <= length for own, length in zip(shares, lengths, strict=True))
    cut = [own for own, length in zip(shares, lengths, strict=True) if own < length]
    assert not cut or max(shares) - min(cut) <= 1


@given(st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=9), min_size=2, max_size=5), st.integers(0, 30))
def test_special_token_template(parts: list[list[int]], extra: int) -> None:
    template = SpecialTokenTemplate([1], [2, 2], [3])
    encoded = template.join(parts, choices=True, max_tokens=template.min_length(len(parts)) + extra)
    assert len(encoded.ids) <= template.min_length(len(parts)) + extra
    full_ids = [1, *parts[0], *(token for part in parts[1:] for token in (2, 2, *part)), 3]
    assert encoded.truncated == (encoded.ids != full_ids)
    for (begin, end), part in zip(encoded.choice_spans, parts[1:], strict=True):
        assert encoded.ids[begin:end] == part[: end - begin]
        assert encoded.ids[begin - 2 : begin] == [2, 2]
    assert [token for token in encoded.ids if token < 10] == [1] + [2, 2] * (len(parts) - 1) + [3]


def test_downsampled_spans() -> None:
    """Spans of groups of states, like those of the bridge; a group belongs to every span that has a state in it."""
    assert downsample_spans(((0, 2), (2, 5), (5, 6)), 2) == ((0, 1), (1, 3), (2, 3))
    assert downsample_spans(((3, 4),), 1) == ((3, 4),)
    assert downsample_spans((), 3) == ()


def test_probabilities_of_choices_sum_to_one(classifier: Classifier) -> None:
    items = [QUESTION, ("a", ["b", "c"]), ("z" * 500, ["the", "team", "is", "good"])]
    predictions = classifier.classify(items, task="copa")
    assert [[*prediction.probabilities] for prediction in predictions] == [
        ["0", "1", "2"],
        ["0", "1"],
        ["0", "1", "2", "3"],
    ]
    for prediction in predictions:
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert prediction.confidence == max(prediction.probabilities.values())
    assert [prediction.truncated for prediction in predictions] == [False, False, True]
    single_predictions = [classifier.classify([item], task="copa")[0] for item in items * 15]
    for one, other in zip(classifier.classify(items * 15, task="copa"), single_predictions, strict=True):
        assert_probabilities_close(one.probabilities, other.probabilities, LLAMA_CPP)


def test_the_order_of_a_pair_matters(classifier: Classifier) -> None:
    one, other = classifier.classify([PAIR, PAIR[::-1]], task="nli")
    assert one.probabilities != pytest.approx(other.probabilities, abs=1e-4)


def test_no_texts(classifier: Classifier) -> None:
    assert classifier.classify([], task="copa") == classifier.classify([], task="nli") == []
    assert (classifier.kind, classifier.labels) == ("sequence", ("science", "sports"))


@pytest.mark.parametrize(
    ("task", "items", "message"),
    [
        ("topic", ["a", PAIR], r"task 'topic' reads one text at a time, but text 1 is a pair \(text, text_pair\)"),
        ("nli", [PAIR, "a"], r"task 'nli' reads a pair \(text, text_pair\) at a time, but text 1 is one text"),
        ("nli", [QUESTION], "but text 0 is a text with its choices"),
        (
            "copa",
            [PAIR],
            r"'copa' reads a text with its choices \(text, \[choice, choice ...\]\) at a time, but text 0",
        ),
        ("nli", [("a", "b", "c")], "text 0 is none of a text, a pair"),
        ("nli", [("a", 5)], "text 0 is none of a text, a pair"),
        ("nli", [PAIR, ("a", " ")], "second text 1 is empty"),
        ("copa", [("a", ["b"])], "text 0 has 1 choices; give two or more"),
        ("copa", [QUESTION, ("a", ["b", None])], "choice 1 of text 1 has the type NoneType"),
        ("copa", [("a", ["b"] * 40)], "text 0 has 41 parts, more than fit into the encoder's 64 tokens"),
    ],
)
def test_inputs_of_another_kind(classifier: Classifier, task: str, items: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        classifier.classify(items, task=task)  # type: ignore[arg-type]


def test_embed_accepts_single_texts_only(bundle: Path) -> None:
    with Embedder.load(bundle, threads=1) as embedder, pytest.raises(DataError, match="the embedder reads one text"):
        embedder.embed([PAIR])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("tasks", "kinds", "message"),
    [
        ({"copa": ("a", "b")}, {"copa": "multiple_choice"}, r"task 'copa' is multiple choice and takes no labels"),
        ({"nli": ("a",)}, {"nli": "pair"}, "task 'nli' needs two or more different labels"),
    ],
)
def test_contradictory_manifests(
    tmp_path: Path, tasks: dict[str, tuple[str, ...]], kinds: dict[str, tiny_bundle.Kind], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        Bundle.open(tiny_bundle.make_tiny_bundle(tmp_path / "bundle", tasks=tasks, kinds=kinds))


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.out, newline="")))


@pytest.fixture
def classify(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Run `classify` on files in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    Path("pairs.csv").write_text(f"text,text_pair,gold\n{PAIR[0]},{PAIR[1]},yes\n{PAIR[1]},{PAIR[0]},no\n")
    Path("nli.csv").write_text(f"premise,hypothesis\n{PAIR[0]},{PAIR[1]}\n{PAIR[1]},{PAIR[0]}\n")
    Path("choices.jsonl").write_text(json.dumps({"text": QUESTION[0], "choices": QUESTION[1]}) + "\n")
    with Path("choices.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "choices"], [QUESTION[0], json.dumps(QUESTION[1])]])
    Path("columns.csv").write_text(f"premise,choice1,choice2,choice3\n{QUESTION[0]},{','.join(QUESTION[1])}\n")

    def run(*arguments: str) -> Result:
        code = main(["classify", "-b", str(bundle), "--threads", "1", *arguments])
        return Result(code, *capsys.readouterr())

    return run


def test_files_of_pairs(classify: Callable[..., Result], classifier: Classifier) -> None:
    expected = [prediction.label for prediction in classifier.classify([PAIR, PAIR[::-1]], task="nli")]
    result = classify("-t", "nli", "pairs.csv")
    assert (result.code, [row["label"] for row in result.rows]) == (0, expected)
    assert [*result.rows[0]] == ["text", "text_pair", "gold", "label", "confidence", "truncated"]
    named = classify("-t", "nli", "nli.csv", "--text-column", "premise", "--pair-column", "hypothesis")
    assert [row["label"] for row in named.rows] == expected
    assert f"{PAIR[0]} | {PAIR[1]}" in classify("-t", "nli", "pairs.csv", "--format", "table").out


def test_files_of_choices(classify: Callable[..., Result], classifier: Classifier) -> None:
    (expected,) = classifier.classify([QUESTION], task="copa")
    columns = [word for number in "123" for word in ("--choices-column", f"choice{number}")]
    for arguments in (["choices.jsonl"], ["choices.csv"], ["columns.csv", "--text-column", "premise", *columns]):
        result = classify("-t", "copa", *arguments)
        assert (result.code, [row["label"] for row in result.rows]) == (0, [expected.label])
        assert_probabilities_close(float(result.rows[0]["confidence"]), expected.confidence, LLAMA_CPP)
    line = json.loads(classify("-t", "copa", "choices.jsonl", "--format", "jsonl").out)
    assert [*line["probabilities"]] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("arguments", "content", "code", "message"),
    [
        (("-t", "nli", "a text"), "", 2, "argument 1 has no column 'text_pair', only 'text'"),
        (("-t", "nli", "choices.jsonl"), "", 2, "choices.jsonl line 1 has no column 'text_pair'"),
        (("-t", "copa", "pairs.csv"), "", 2, "pairs.csv row 1 has no column 'choices'"),
        (("-t", "topic", "pairs.csv", "--pair-column", "text_pair"), "", 2, "--pair-column is for tasks of pairs, but"),
        (("-t", "nli", "pairs.csv", "--choices-column", "x"), "", 2, "--choices-column is for multiple choice, but"),
        (("-t", "nli", "in.csv"), "text,text_pair\na,\n", 1, "in.csv row 2, column 'text_pair', is empty"),
        (("-t", "copa", "in.csv"), "text,choices\na,b\n", 1, "in.csv row 2, column 'choices', is no list of choices"),
        (("-t", "copa", "in.csv"), 'text,choices\na,"[""b""]"\n', 1, "has 1 choices; give two or more"),
        (("-t", "copa", "in.csv"), 'text,choices\na,"[""b"",5]"\n', 1, "choice 1 is a number, expected a string"),
    ],
)
def test_files_without_the_required_columns(
    classify: Callable[..., Result], arguments: tuple[str, ...], content: str, code: int, message: str
) -> None:
    Path("in.csv").write_text(content)
    result = classify(*arguments)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err


def test_info_shows_the_kind_of_a_task(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(bundle)]) == 0
    output = capsys.readouterr().out
    for words in ("science, sports", "a pair of texts: no, yes", "multiple choice: the number of a choice"):
        assert words in output
