"""Label a Parquet data set with Spark: `mapInPandas` loads one classifier per partition.

python examples/spark_batch.py texts.parquet labeled/ --bundle build/reference --task topic --workers 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from mtllm_edge import Bundle, Classifier, MtllmError
from mtllm_edge.backends.cpu import available_cores
from mtllm_edge.files.writers import free_names

Frames = Iterator[pd.DataFrame]


def make_labeler(
    bundle: str, task: str, column: str, names: dict[str, str], threads: int
) -> Callable[[Frames], Frames]:
    """Return a function for `mapInPandas` that adds label and confidence to rows, in the columns `names`."""

    def label(frames: Frames) -> Frames:
        with Classifier.load(bundle, task=task, threads=threads) as classifier:
            for frame in frames:
                predictions = classifier.classify(list(frame[column]))
                labels, confidences = zip(*((row.label, row.confidence) for row in predictions), strict=True)
                yield frame.assign(**{names["label"]: labels, names["confidence"]: confidences})

    return label


def main() -> int:
    """Label a file or folder on this machine, and return the exit code."""
    parser = argparse.ArgumentParser(description="Label a Parquet data set with Spark.")
    parser.add_argument("source", type=Path, help="Parquet file, or folder of Parquet files")
    parser.add_argument("out", type=Path, help="output folder")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--task")
    parser.add_argument("--column", default="text")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    threads = max(1, available_cores() // arguments.workers)
    try:
        bundle = Bundle.open(arguments.bundle)
        task = bundle.task_name(arguments.task)
        # The first load on a machine probes the engines; do this once on idle cores, not in each worker.
        Classifier.load(bundle, task=task, threads=threads).close()
    except MtllmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    # A Spark task reserves as many cores as the engines have threads.
    builder = SparkSession.builder.master(f"local[{arguments.workers * threads}]").config("spark.task.cpus", threads)
    with builder.getOrCreate() as spark:
        rows = spark.read.parquet(str(arguments.source)).filter(f"trim(`{arguments.column}`) != ''")
        rows = rows.repartition(arguments.workers)  # each partition loads the bundle
        names = free_names(["label", "confidence"], rows.columns)
        schema = StructType(list(rows.schema.fields)).add(names["label"], "string").add(names["confidence"], "double")
        label = make_labeler(str(bundle.path), task, arguments.column, names, threads)
        rows.mapInPandas(label, schema).write.parquet(str(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
