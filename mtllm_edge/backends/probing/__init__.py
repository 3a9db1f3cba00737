"""Trial runs of native engines in child processes, and the cache of their results."""
