"""Recipe of the paper's model: NLLB-200-distilled-600M under Llama-3-8B, made bidirectional by LLM2Vec.

Settings of Schmidt et al. 2024 (arXiv 2406.12739), except that the bridge is initialized by regression and not at
random. Run it as ``python -m mtllm_edge_train.recipes.nllb_llama3 DATA OUT``. A repeated command skips finished stages
and resumes an unfinished one. DATA holds::

    english.parquet                  column text: 2.56 million English texts; fewer are read several times
    <task>/train.parquet             columns text, label; English
    <task>/test/<language>.parquet   the same columns; the file name is a language code of NLLB, such as ace_Latn

OUT receives ``llm``, ``adapted``, and for each task ``<task>-teacher``, ``<task>`` and ``<task>-scores.jsonl``.
Requires the extra ``[train]`` and access to Llama 3 on the hub.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import MtllmError, UsageError
from mtllm_edge_train.checkpoints.config import EncoderConfig, LlmConfig, LoraConfig
from mtllm_edge_train.data.labeled import read_labeled
from mtllm_edge_train.data.streams import TextStream
from mtllm_edge_train.evaluation.bootstrap import score
from mtllm_edge_train.evaluation.checkpoint_classifier import CheckpointClassifier
from mtllm_edge_train.recipes.llm2vec import merge_adapters
from mtllm_edge_train.stages.adapt import Adaptation
from mtllm_edge_train.stages.distill import Distillation
from mtllm_edge_train.stages.finetune import FineTuning
from mtllm_edge_train.training.loop import run_stage
from mtllm_edge_train.training.run_state import is_finished
from mtllm_edge_train.training.settings import LoopSettings

# Models.
ENCODER = EncoderConfig(source="facebook/nllb-200-distilled-600M", max_tokens=512)
LLM = "meta-llama/Meta-Llama-3-8B-Instruct"
LLM2VEC = (
    "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp",
    "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp-unsup-simcse",
)
"""Adapters of bidirectional attention; the second was trained on top of the first."""
LORA = LoraConfig(rank=16, alpha=32.0, dropout=0.05)
SOURCES = (
    WeightSource(part="encoder", name=ENCODER.source, license="CC-BY-NC-4.0"),
    WeightSource(part="llm", name=LLM, license="Llama 3 Community License"),
    *(WeightSource(part="llm", name=name, license="MIT") for name in LLM2VEC),
)

# General adaptation.
STEPS = 10_000
BATCH_SIZE = 256
LEARNING_RATE = 2e-4
WARMUP = 0.01

# Tasks.
EPOCHS = {"nusax": 20}
"""Task -> epochs of its fine-tuning and of its distillation."""
TASK_LEARNING_RATE = 1e-4
TASK_BATCH_SIZE = 32


def run(data: Path, out: Path, *, device: str) -> None:
    """Run all stages; the module docstring describes the folders `data` and `out`.

    Raises:
        MtllmError: DATA is incomplete, or a stage fails.
    """
    check_data(data)
    if not (out / "llm").exists():
        merge_adapters(LLM, LLM2VEC, out / "llm")
    llm = LlmConfig(source=str((out / "llm").resolve()), layers=None, attention="bidirectional")
    adapt_stack(data, out, llm, device=device)
    for task, epochs in EPOCHS.items():
        train_task(data / task, task, out, llm, epochs=epochs, device=device)
        scores = out / f"{task}-scores.jsonl"
        if not scores.exists():
            evaluate(data / task / "test", task, out / task, scores, device=device)


def _settings(batch_size: int, learning_rate: float, device: str) -> LoopSettings:
    return LoopSettings(batch_size, learning_rate, warmup=WARMUP, gradient_checkpointing=True, device=device)


def adapt_stack(data: Path, out: Path, llm: LlmConfig, *, device: str) -> None:
    """Run general adaptation, unless it is finished."""
    if is_finished(out / "adapted"):
        return
    stage = Adaptation(
        texts=TextStream([data / "english.parquet"]),
        name="nllb-llama3-adapted",
        encoder=ENCODER,
        llm=llm,
        lora=LORA,
        steps=STEPS,
        settings=_settings(BATCH_SIZE, LEARNING_RATE, device),
        bridge_learning_rate=LEARNING_RATE,
        sources=SOURCES,
    )
    run_stage(stage, out / "adapted")


def train_task(data: Path, task: str, out: Path, llm: LlmConfig, *, epochs: int, device: str) -> None:
    """Fine-tune the teacher of a task and distill it into the adapted stack, unless they are finished."""
    settings = _settings(TASK_BATCH_SIZE, TASK_LEARNING_RATE, device)
    training = read_labeled(data / "train.parquet")
    teacher, student, name = out / f"{task}-teacher", out / task, f"nllb-llama3-{task}"
    if not is_finished(teacher):
        tuning = FineTuning(
            tasks={task: training},
            name=f"{name}-teacher",
            llm=llm,
            lora=LORA,
            settings=settings,
            epochs=epochs,
            sources=SOURCES,
        )
        run_stage(tuning, teacher)
    if not is_finished(student):
        distillation = Distillation(
            texts=training.texts,
            adapted=out / "adapted",
            teacher=teacher,
            name=name,
            settings=settings,
            epochs=epochs,
        )
        run_stage(distillation, student)


def evaluate(tests: Path, task: str, checkpoint: Path, scores: Path, *, device: str) -> None:
    """Score a task in every language with a test file; write and print one line of JSON each."""
    classifier = CheckpointClassifier(checkpoint, device=device)
    lines = []
    for file in sorted(tests.glob("*.parquet")):
        test = read_labeled(file)
        predictions = classifier.predict(task, test.inputs, language=file.stem)
        line = {"task": task, "language": file.stem, "texts": len(test.texts), **score(test.labels, predictions)}
        lines.append(json.dumps(line))
        print(lines[-1])
    scores.write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_data(data: Path) -> None:
    """Check that all files exist, before any work.

    Raises:
        UsageError: One is missing.
    """
    files = [data / "english.parquet", *(data / task / "train.parquet" for task in EPOCHS)]
    for path in files:
        if not path.is_file():
            raise UsageError(
                f"{path} is no file; DATA needs {', '.join(str(file.relative_to(data)) for file in files)}"
            )
    for task in EPOCHS:
        if not any((data / task / "test").glob("*.parquet")):
            raise UsageError(
                f"{data / task / 'test'} holds no <language>.parquet; DATA needs a test file to evaluate on"
            )


def main() -> None:
    """Run the recipe from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mtllm_edge_train.recipes.nllb_llama3",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # raised by the libraries about each other
    try:
        run(arguments.data, arguments.out, device=arguments.device)
    except MtllmError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped; repeat the command to resume from the last save", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
