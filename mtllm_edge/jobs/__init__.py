"""Batch jobs: files of any size through a model, resumable, with bad rows set aside.

The inputs are read twice as streams. The first time every row goes to the model, chunk by chunk, and only the answers
are kept, in a journal on disk. The second time answers and rows are joined into the output, which takes its name when
it is whole. So memory does not grow with the file, a journal is small, columns keep their types, and what only the end
of the input tells (which columns there are) is known before the first row is written.
"""
