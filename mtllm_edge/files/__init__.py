"""Tables and texts in files: csv, tsv, jsonl, xlsx, parquet, txt, compressed or not; atomic writes."""
