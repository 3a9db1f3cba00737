"""Batch jobs: classify or embed files of any size, resume after an interruption, and set unreadable rows aside.

The inputs are streamed twice. The first pass computes the results, chunk by chunk, and stores them in a journal on
disk; the second joins rows and results into the output, which is renamed when it is complete. So memory does not grow
with the file, cells keep their types, and all columns are known before the first row is written.
"""
