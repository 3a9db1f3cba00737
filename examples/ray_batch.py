"""Label a Parquet data set with Ray Data: one classifier per worker, with an equal share of the cores.

    python examples/ray_batch.py texts.parquet labeled/ --bundle build/reference --task topic --workers 2

The output keeps all columns and the order of rows, and adds label and confidence (predicted_label if the column label
exists). Both are empty for blank texts.
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

BATCH_SIZE = 512
"""Texts per call: enough to sort by length, few enough to keep all workers busy until the end."""
READER_CPUS = 1
"""Logical CPUs that Ray reserves for reading and writing. Without one, reading never starts."""


class BatchClassifier:
    """Callable that labels batches of rows; Ray creates one per worker."""

    def __init__(self, bundle: str, task: str, column: str, names: dict[str, str], threads: int) -> None:
        """Load the bundle; its path must exist on every machine."""
        self._classifier = Classifier.load(bundle, task=task, threads=threads)
        self._column, self._names = column, names

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the batch with the new columns."""
        texts = ["" if text is None else str(text) for text in batch[self._column]]
        indices = [index for index, text in enumerate(texts) if text.strip()]
        labels, confidences = np.full(len(texts), None, object), np.full(len(texts), np.nan)
        predictions = self._classifier.classify([texts[index] for index in indices])
        labels[indices] = [prediction.label for prediction in predictions]
        confidences[indices] = [prediction.confidence for prediction in predictions]
        return batch | {self._names["label"]: labels, self._names["confidence"]: confidences}


def label(
    dataset: ray.data.Dataset,
    bundle: str,
    *,
    task: str | None = None,
    column: str = "text",
    workers: int,
    threads: int,
    classifier_class: type = BatchClassifier,
) -> ray.data.Dataset:
    """Return a lazy data set with labels.

    Args:
        dataset: Rows with a column of texts.
        bundle: Folder of a bundle, or name of an installed one.
        task: Name of the task; None uses the bundle's only one.
        column: Name of the text column.
        workers: Number of worker processes, each with its own engines.
        threads: CPU threads per worker, which Ray reserves. The cluster requires `READER_CPUS` more.
        classifier_class: `BatchClassifier` or a subclass.

    Raises:
        MtllmError: The bundle cannot be opened on this machine, or has no such task.
    """
    dataset.context.execution_options.preserve_order = True  # the context is a copy of this data set
    names = free_names(["label", "confidence"], dataset.schema().names)
    opened = Bundle.open(bundle)
    arguments = (str(opened.path), opened.task_name(task), column, names, threads)
    # A worker takes whole blocks, and Ray reads a file of up to 128 MB as one block.
    return dataset.repartition(target_num_rows_per_block=BATCH_SIZE).map_batches(
        classifier_class,
        fn_constructor_args=arguments,
        batch_size=BATCH_SIZE,
        num_cpus=threads,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )


def main() -> int:
    """Label a file or folder on this machine, and return the exit code."""
    parser = argparse.ArgumentParser(description="Label a Parquet data set with Ray Data.")
    parser.add_argument("source", type=Path, help="Parquet file, or folder of Parquet files")
    parser.add_argument("out", type=Path, help="output folder")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--task")
    parser.add_argument("--column", default="text")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    threads = max(1, available_cores() // arguments.workers)
    try:
        # The first load on a machine probes the engines. Probing in several workers at once could select different LLM
        # backends, so load once on idle cores before the cluster starts.
        Classifier.load(arguments.bundle, task=arguments.task, threads=threads).close()
        ray.init("local", num_cpus=arguments.workers * threads + READER_CPUS, include_dashboard=False)
        label(
            ray.data.read_parquet(str(arguments.source)),
            arguments.bundle,
            task=arguments.task,
            column=arguments.column,
            workers=arguments.workers,
            threads=threads,
        ).write_parquet(str(arguments.out), min_rows_per_file=64 * BATCH_SIZE)
    except MtllmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
