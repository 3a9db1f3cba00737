"""Results of a benchmark: tables, charts, files."""
