"""Order of the batches of a training set that fits into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


class BatchOrder:
    """A reproducible order of batches: batch `step` depends on the seed alone, so a resumed run continues unchanged.

    Every epoch is shuffled. Within a window of batches, texts are sorted by length, which saves padding.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int, window: int = 32) -> None:
        """Plan batches of items with the given lengths, in any unit."""
        self._lengths = np.asarray(lengths)
        self._size = min(batch_size, len(lengths))
        self._seed, self._window = seed, window
        self.batches_per_epoch = len(lengths) // self._size
        self._epoch = -1
        self._batches: list[NDArray[np.int64]] = []

    def __getitem__(self, step: int) -> NDArray[np.int64]:
        """Return the item indices of a batch. The remainder of an epoch is skipped."""
        epoch, index = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, list(self._shuffled(epoch))
        return self._batches[index]

    def _shuffled(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._lengths))[: self.batches_per_epoch * self._size]
        span = self._size * self._window
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), span):
            part = order[start : start + span]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches.extend(part.reshape(-1, self._size))
        for index in rng.permutation(len(batches)):
            yield batches[index]
