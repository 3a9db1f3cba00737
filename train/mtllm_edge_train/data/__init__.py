"""Training data: texts, labeled tables, data sets of the hub, batches."""
