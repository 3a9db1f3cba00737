"""Label a Parquet data set with Spark: `mapInPandas` loads a classifier for each partition and reads its rows with it.

python examples/spark_batch.py texts.parquet labelled/ --bundle build/reference --task topic --workers 2
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


def labeller(bundle: str, task: str, column: str, names: dict[str, str], threads: int) -> Callable[[Frames], Frames]:
    """What Spark calls once for each partition: frames of rows to the same with label and confidence, under `names`."""

    def label(frames: Frames) -> Frames:
        with Classifier.load(bundle, task=task, threads=threads) as classifier:
            for frame in frames:
                predictions = classifier.classify(list(frame[column]))
                labels, confidences = zip(*((each.label, each.confidence) for each in predictions), strict=True)
                yield frame.assign(**{names["label"]: labels, names["confidence"]: confidences})

    return label


def main() -> int:
    """Label a file or folder on this machine; returns the exit code."""
    parser = argparse.ArgumentParser(description="Label a Parquet data set with Spark.")
    parser.add_argument("source", type=Path, help="a Parquet file, or a folder of them")
    parser.add_argument("out", type=Path, help="a folder for the results")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--task")
    parser.add_argument("--column", default="text")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    threads = max(1, available_cores() // arguments.workers)
    try:
        bundle = Bundle.open(arguments.bundle)
        task = bundle.task_name(arguments.task)
        # What is tried at a machine's first start is thus tried once, on idle cores, and not by every worker.
        Classifier.load(bundle, task=task, threads=threads).close()
    except MtllmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    # A task of Spark's takes as many cores as the engines have threads, so that no core has two of them.
    builder = SparkSession.builder.master(f"local[{arguments.workers * threads}]").config("spark.task.cpus", threads)
    with builder.getOrCreate() as spark:
        rows = spark.read.parquet(str(arguments.source)).filter(f"trim(`{arguments.column}`) != ''")
        rows = rows.repartition(arguments.workers)  # the bundle is loaded for each
        names = free_names(["label", "confidence"], rows.columns)
        schema = StructType(list(rows.schema.fields)).add(names["label"], "string").add(names["confidence"], "double")
        label = labeller(str(bundle.path), task, arguments.column, names, threads)
        rows.mapInPandas(label, schema).write.parquet(str(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
