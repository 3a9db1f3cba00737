"""The paper's own model: NLLB-200-distilled-600M under Llama-3-8B, bidirectional by LLM2Vec.

Settings of Schmidt et al. 2024 (arXiv 2406.12739), but the bridge starts aligned and not from noise. To be run as
``python -m mtllm_edge_train.recipes.nllb_llama3 DATA OUT``; stages that are done are skipped and one under way is
resumed, so the command may be repeated until it ends. DATA holds::

    english.parquet                  column text: 2.56 million English texts, or fewer, seen several times
    <task>/train.parquet             columns text, label; English
    <task>/test/<language>.parquet   the same; named by NLLB's code, such as ace_Latn

OUT receives ``llm``, ``adapted``, and for each task ``<task>-teacher``, ``<task>`` and ``<task>-scores.jsonl``.
Needs the extra ``[train]`` and access to Llama 3 on the hub.

With ``--dry-run`` nothing is downloaded, trained or written: the models' shapes alone say what the run needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import MtllmError, UsageError
from mtllm_edge_train.checkpoints.config import EncoderConfig, LlmConfig, LoraConfig

if TYPE_CHECKING:
    from mtllm_edge_train.recipes.dry_run import Run

# The models.
ENCODER = EncoderConfig(source="facebook/nllb-200-distilled-600M", max_tokens=512)
LLM = "meta-llama/Meta-Llama-3-8B-Instruct"
LLM2VEC = (
    "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp",
    "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp-unsup-simcse",
)
"""Adapters that taught the LLM to read in both directions, the second on top of the first."""
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
PAPER_GPUS, PAPER_HOURS, PAPER_PEAK = 8, 22.0, 312e12
"""What the paper took, on A100s of 80 GB; the peak is that of one, in bfloat16 FLOPs per second."""

# Tasks.
EPOCHS = {"nusax": 20}
"""Of task fine-tuning and of task distillation."""
TASK_LEARNING_RATE = 1e-4
TASK_BATCH_SIZE = 32

# The models' shapes, for --dry-run.
ENCODER_SHAPE = {
    "vocab_size": 256_206,
    "d_model": 1024,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "max_position_embeddings": 1024,
}
LLM_SHAPE = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14_336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
MFU = 0.35
"""Fraction of a GPU's peak that training reaches, as assumed by --dry-run."""


def run(data: Path, out: Path, *, device: str) -> None:
    """Run all stages.

    Args:
        data: See the head of this file.
        out: See the head of this file.
        device: ``cuda`` or ``cpu``.

    Raises:
        MtllmError: DATA is incomplete, or a stage fails.
    """
    from mtllm_edge_train.data.labeled import read_labeled
    from mtllm_edge_train.data.streams import TextStream
    from mtllm_edge_train.recipes.llm2vec import merge_adapters
    from mtllm_edge_train.stages.adapt import adapt
    from mtllm_edge_train.stages.distill import distill
    from mtllm_edge_train.stages.finetune import finetune
    from mtllm_edge_train.training.run_state import is_finished
    from mtllm_edge_train.training.settings import LoopSettings

    check_data(data)
    if not (out / "llm").exists():
        merge_adapters(LLM, LLM2VEC, out / "llm")
    llm = LlmConfig(source=str((out / "llm").resolve()), layers=None, attention="bidirectional")
    if not is_finished(out / "adapted"):
        adapt(
            TextStream([data / "english.parquet"]),
            out / "adapted",
            name="nllb-llama3-adapted",
            encoder=ENCODER,
            llm=llm,
            lora=LORA,
            steps=STEPS,
            settings=LoopSettings(
                batch_size=BATCH_SIZE,
                learning_rate=LEARNING_RATE,
                warmup=WARMUP,
                gradient_checkpointing=True,
                device=device,
            ),
            bridge_learning_rate=LEARNING_RATE,
            sources=SOURCES,
        )
    for task, epochs in EPOCHS.items():
        settings = LoopSettings(
            batch_size=TASK_BATCH_SIZE,
            learning_rate=TASK_LEARNING_RATE,
            warmup=WARMUP,
            gradient_checkpointing=True,
            device=device,
        )
        training = read_labeled(data / task / "train.parquet")
        teacher, student = out / f"{task}-teacher", out / task
        if not is_finished(teacher):
            finetune(
                {task: training},
                teacher,
                name=f"nllb-llama3-{task}-teacher",
                llm=llm,
                lora=LORA,
                settings=settings,
                epochs=epochs,
                sources=SOURCES,
            )
        if not is_finished(student):
            distill(
                training.texts,
                out / "adapted",
                teacher,
                student,
                name=f"nllb-llama3-{task}",
                settings=settings,
                epochs=epochs,
            )
        scores = out / f"{task}-scores.jsonl"
        if not scores.exists():
            evaluate(data / task / "test", task, student, scores, device=device)


def evaluate(tests: Path, task: str, checkpoint: Path, scores: Path, *, device: str) -> None:
    """Score a task in every language that has a test file; one line of JSON each."""
    import msgspec

    from mtllm_edge_train.data.labeled import read_labeled
    from mtllm_edge_train.evaluation.scoring import Evaluator

    evaluator = Evaluator(checkpoint, device=device)
    lines = []
    for file in sorted(tests.glob("*.parquet")):
        found = evaluator.evaluate(task, read_labeled(file), language=file.stem)
        lines.append(json.dumps({"task": task, "language": file.stem, **msgspec.structs.asdict(found)}))
        print(lines[-1])
    scores.write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_data(data: Path) -> None:
    """Find out now, not after a day, that a file is missing.

    Raises:
        UsageError: One is.
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


def described(tokens: int, mfu: float) -> Run:
    """The run as `--dry-run` sees it.

    Raises:
        UsageError: A text of no or too many tokens, or more than the whole peak.
    """
    from mtllm_edge_train.recipes.dry_run import Run

    if not 1 <= tokens <= ENCODER.max_tokens:
        raise UsageError(f"a text cannot have {tokens} tokens; choose 1 to {ENCODER.max_tokens}")
    if not 0 < mfu <= 1:
        raise UsageError(f"no GPU reaches {mfu} of its peak; choose a fraction above 0, at most 1")
    return Run(
        encoder=ENCODER_SHAPE,
        llm=LLM_SHAPE,
        lora=LORA,
        steps=STEPS,
        batch_size=BATCH_SIZE,
        tokens=tokens,
        mfu=mfu,
    )


def task_tokens(data: Path, tokens: int) -> dict[str, dict[str, int]]:
    """What each task's stages read in training if every text has that many tokens.

    Raises:
        MtllmError: A training file is not readable.
    """
    from mtllm_edge_train.data.labeled import read_labeled

    found = {}
    for task, epochs in EPOCHS.items():
        once = tokens * len(read_labeled(data / task / "train.parquet").texts)
        found[task] = {"fine-tuning": epochs * once, "distillation, teacher": once, "distillation": epochs * once}
    return found


def compare_with_paper(flops: Mapping[str, int]) -> dict[str, Any]:
    """Which fraction of the peak the paper's run reached if it cost these FLOPs."""
    peak = PAPER_GPUS * PAPER_HOURS * 3600 * PAPER_PEAK
    plain = flops["student"] + flops["teacher"]
    mfu = {"without checkpointing": plain / peak, "with checkpointing": (plain + flops["recomputed"]) / peak}
    return {"gpus": PAPER_GPUS, "hours": PAPER_HOURS, "mfu": mfu}


def main() -> None:
    """Run the recipe, or say what it needs; the last line of a dry run is one JSON document."""
    parser = argparse.ArgumentParser(
        prog="python -m mtllm_edge_train.recipes.nllb_llama3",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="say what the run needs, and do nothing")
    parser.add_argument("--tokens", type=int, default=ENCODER.max_tokens, help="dry run: of a text (default: the most)")
    parser.add_argument("--mfu", type=float, default=MFU, help="dry run: fraction of the GPU's peak that is reached")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries about each other
    try:
        if not arguments.dry_run:
            run(arguments.data, arguments.out, device=arguments.device)
            return
        check_data(arguments.data)
        from mtllm_edge_train.recipes import dry_run

        tasks = task_tokens(arguments.data, arguments.tokens)
        figures = dry_run.report(described(arguments.tokens, arguments.mfu))
        figures["task_tokens"] = tasks
        figures["paper"] = compare_with_paper(figures["flops"])
        print(dry_run.table(figures))
        for task, stages in tasks.items():
            print(f"{task}, tokens:", ", ".join(f"{count / 1e6:,.1f} M in {stage}" for stage, count in stages.items()))
        print(
            "at that length the paper's run reached",
            ", ".join(f"{mfu:.0%} {how}" for how, mfu in figures["paper"]["mfu"].items()),
        )
        print(json.dumps(figures))
    except MtllmError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped; repeat the command to go on from the last save", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
