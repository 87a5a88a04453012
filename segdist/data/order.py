"""The samples of global batch t: a pure function of (row-group sizes, seed, t, global batch size, lanes).

The order does not depend on ranks, threads, restarts or cluster size, so the integer t is the whole state of the stream.
An epoch permutes the row groups and joins them into one sequence of rows, rotated by a seeded offset. The sequence is cut
into lanes of T rows, and slot s of the batch walks its lanes. A batch thus mixes as many row groups as it has slots,
without a shuffle buffer. Rows are also permuted within their row group.

The permutations are implemented here (a Feistel network on splitmix64), since numpy's may change between versions.
No table is as long as the dataset: the first row of a row group follows from the number of odd-sized row groups before it,
and the inverse permutation gives the positions of these.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from segdist.errors import DataError

VERSION = 1  # of the order; checkpoints store it, so a run never continues with another order unnoticed

_ROUNDS = 8
_U = np.uint64


def mix(x: Any) -> Any:
    """Apply the splitmix64 finaliser to uint64 (Steele et al. 2014, "Fast splittable pseudorandom number generators")."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, dtype=_U) + _U(0x9E3779B97F4A7C15)
        x = (x ^ (x >> _U(30))) * _U(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> _U(27))) * _U(0x94D049BB133111EB)
        return x ^ (x >> _U(31))


def key(*parts: Any) -> Any:
    """Hash integers, or broadcastable arrays of integers, to one uint64 each."""
    state: Any = _U(0)
    for part in parts:
        state = mix(state ^ np.asarray(part).astype(_U))
    return state


class Permutation:
    """A seeded bijection of range(n): a Feistel network of 8 rounds, with cycle walking to stay below n."""

    def __init__(self, n: int, seed: Any) -> None:
        self.n = n
        self._half = _U(max(1, ((max(n, 2) - 1).bit_length() + 1) // 2))
        self._mask = (_U(1) << self._half) - _U(1)
        self._keys = [key(seed, i) for i in range(_ROUNDS)]

    def __call__(self, x: Any) -> np.ndarray:
        """Map each x to its new position."""
        return self._walk(x, self._forward)

    def inverse(self, y: Any) -> np.ndarray:
        """Map each position y back to the x that maps to it."""
        return self._walk(y, self._backward)

    def _forward(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self._half, x & self._mask
        for k in self._keys:
            left, right = right, left ^ (mix(right ^ k) & self._mask)
        return (left << self._half) | right

    def _backward(self, y: np.ndarray) -> np.ndarray:
        left, right = y >> self._half, y & self._mask
        for k in reversed(self._keys):
            left, right = right ^ (mix(left ^ k) & self._mask), left
        return (left << self._half) | right

    def _walk(self, x: Any, step: Any) -> np.ndarray:
        out = step(np.atleast_1d(np.asarray(x)).astype(_U))
        outside = out >= self.n
        while outside.any():
            out[outside] = step(out[outside])
            outside = out >= self.n
        return out.astype(np.int64)


class Epoch:
    """The row sequence of one epoch. Finds the (row group, row) at any position in O(log number of odd row groups)."""

    def __init__(self, sizes: np.ndarray, odd: np.ndarray, rows_per_group: int, seed: int, epoch: int) -> None:
        self._sizes, self._rows, self._seed, self._epoch = sizes, rows_per_group, seed, epoch
        self._num_rows = int(rows_per_group) * (len(sizes) - len(odd)) + int(sizes[odd].sum())
        self._permutation = Permutation(len(sizes), key(seed, epoch, 1))
        self._offset = int(key(seed, epoch, 2) % _U(self._num_rows))
        # The rotation makes the rows that an epoch leaves out uniform over rows. Without it they would be uniform over
        # row groups, and the rows of a small row group would be left out more often.
        place = self._permutation.inverse(odd) if len(odd) else np.zeros(0, np.int64)
        self._place = np.sort(place)
        self._odd_sizes = sizes[odd][np.argsort(place)]
        deficit = np.cumsum(rows_per_group - self._odd_sizes) - (rows_per_group - self._odd_sizes)
        self._start = rows_per_group * self._place - deficit  # first row of each odd row group

    def locate(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the (row group, row in it) at each position of the sequence."""
        position = (position + self._offset) % self._num_rows
        place, row = position // self._rows, position % self._rows
        if len(self._place):
            i = np.searchsorted(self._start, position, "right") - 1  # the last odd row group that starts here or before
            first, at, size = self._start[i], self._place[i], self._odd_sizes[i]
            beyond = position - (first + size)
            inside = (i >= 0) & (beyond < 0)
            after = (i >= 0) & (beyond >= 0)
            place = np.where(inside, at, np.where(after, at + 1 + beyond // self._rows, place))
            row = np.where(inside, position - first, np.where(after, beyond % self._rows, row))
        row_group = self._permutation(place)
        return row_group, self._shuffle_rows(row_group, row)

    def _shuffle_rows(self, row_group: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Permute rows within their row group by sorting hashes. Rows past the end of a row group sort last."""
        rows = np.arange(self._rows)
        hashes = key(self._seed, self._epoch, 3, row_group[:, None], rows[None, :])
        hashes[rows[None, :] >= self._sizes[row_group][:, None]] = np.iinfo(np.uint64).max
        order = np.argsort(hashes, axis=1, kind="stable")
        return order[np.arange(len(row)), row]


class Order:
    """The samples of every global batch of a run.

    `sizes` are the rows of every row group of the split, in the order of the index. Nearly all are equal.
    Raises DataError if the split is too small for one batch.
    """

    def __init__(self, sizes: np.ndarray, seed: int, global_batch_size: int, lanes_per_slot: int = 1) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        assert len(self.sizes) and self.sizes.min() > 0, "the index has no empty row groups"
        self.num_samples = int(self.sizes.sum())
        self.seed, self.global_batch_size, self.lanes = seed, global_batch_size, lanes_per_slot
        self._rows_per_group = int(self.sizes.max())  # ShardWriter cuts equal row groups and one short tail per shard
        self._odd = np.flatnonzero(self.sizes != self._rows_per_group)
        self.lane_steps = self.num_samples // (global_batch_size * lanes_per_slot)
        if self.lane_steps == 0:
            raise DataError(
                f"the training split has {self.num_samples} samples, but train.global_batch_size={global_batch_size} needs at "
                f"least {global_batch_size * lanes_per_slot}. Set train.global_batch_size to "
                f"{self.num_samples // lanes_per_slot} or less, and train.micro_batch_size to a divisor of it"
            )
        self._epoch: tuple[int, Epoch] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Return the full batches in an epoch. Less than one batch per lane is left out, with other samples each epoch."""
        return self.lane_steps * self.lanes

    def batch(self, step: int, slots: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
        """Locate the samples of some slots of global batch `step`.

        Returns (epoch, row group of each slot, row within the row group of each slot).
        """
        number, u = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != number:
            self._epoch = number, Epoch(self.sizes, self._odd, self._rows_per_group, self.seed, number)
        slots = np.asarray(slots, dtype=np.int64)
        lane = slots * self.lanes + (u + slots) % self.lanes  # + slots: neighbours change lanes at different steps
        row_group, row = self._epoch[1].locate(lane * self.lane_steps + u // self.lanes)
        return number, row_group, row
