"""Label a Parquet data set with Ray Data: a classifier in every worker, the cores shared out among them.

    python examples/ray_batch.py texts.parquet labelled/ --bundle build/reference --task topic --workers 2

The results keep the columns and the order of the rows, and add label and confidence (predicted_label, where there is a
label already); of a blank text they are empty.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from mtllm_edge import Bundle, Classifier, MtllmError
from mtllm_edge.backends.cpu import available_cores
from mtllm_edge.files.writers import free_names

BATCH = 512
"""Texts that a worker gets at once: enough to be sorted by length, so few that none is left with a long last one."""
READER = 1
"""Cores, in Ray's count, that no worker holds: without one nothing could be read for them. It has little to do."""


class Labeller:
    """What a worker does: Ray makes one in each, and calls it with one batch of rows after another."""

    def __init__(self, bundle: str, task: str, column: str, names: dict[str, str], threads: int) -> None:
        """Load the bundle, whose path every worker must see."""
        self._classifier = Classifier.load(bundle, task=task, threads=threads)
        self._column, self._names = column, names

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The batch with the new columns."""
        texts = ["" if text is None else str(text) for text in batch[self._column]]
        places = [place for place, text in enumerate(texts) if text.strip()]
        labels, confidences = np.full(len(texts), None, object), np.full(len(texts), np.nan)
        predictions = self._classifier.classify([texts[place] for place in places])
        labels[places] = [each.label for each in predictions]
        confidences[places] = [each.confidence for each in predictions]
        return batch | {self._names["label"]: labels, self._names["confidence"]: confidences}


def label(
    dataset: ray.data.Dataset,
    bundle: str,
    *,
    task: str | None = None,
    column: str = "text",
    workers: int,
    threads: int,
    labeller: type = Labeller,
) -> ray.data.Dataset:
    """A data set with labels; nothing is computed before it is written or read.

    Args:
        dataset: Rows with a column of texts.
        bundle: Folder of a bundle, or the name of an installed one.
        task: The task; None takes the bundle's only one.
        column: The column.
        workers: Processes, each with engines of its own.
        threads: CPU threads of each, which Ray keeps free for it. The cluster needs one more, or it waits for ever:
            the workers hold theirs from the first moment to the last, and reading takes one, too.
        labeller: `Labeller`, or a class made of it.

    Raises:
        MtllmError: The bundle cannot be opened here, or has no such task.
    """
    dataset.context.execution_options.preserve_order = True  # its own copy, made when it was read
    names = free_names(["label", "confidence"], dataset.schema().names)
    opened = Bundle.open(bundle)
    arguments = (str(opened.path), opened.task_name(task), column, names, threads)
    # A worker takes whole blocks, and Ray reads a file of up to 128 MB as a single one.
    return dataset.repartition(target_num_rows_per_block=BATCH).map_batches(
        labeller,
        fn_constructor_args=arguments,
        batch_size=BATCH,
        num_cpus=threads,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )


def main() -> int:
    """Label a file or folder on this machine; returns the exit code."""
    parser = argparse.ArgumentParser(description="Label a Parquet data set with Ray Data.")
    parser.add_argument("source", type=Path, help="a Parquet file, or a folder of them")
    parser.add_argument("out", type=Path, help="a folder for the results")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--task")
    parser.add_argument("--column", default="text")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    threads = max(1, available_cores() // arguments.workers)
    try:
        # Before a cluster is started. What is tried at a machine's first start is thus tried once, on idle cores: by
        # workers side by side it would be tried in each, and they might come to run different forms of the LLM.
        Classifier.load(arguments.bundle, task=arguments.task, threads=threads).close()
        ray.init("local", num_cpus=arguments.workers * threads + READER, include_dashboard=False)
        label(
            ray.data.read_parquet(str(arguments.source)),
            arguments.bundle,
            task=arguments.task,
            column=arguments.column,
            workers=arguments.workers,
            threads=threads,
        ).write_parquet(str(arguments.out), min_rows_per_file=64 * BATCH)
    except MtllmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
