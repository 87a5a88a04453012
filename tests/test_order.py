"""The order of samples, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdist.data.order import Epoch, Order, Permutation, key, mix
from segdist.errors import DataError

Sample = tuple[int, int]


def epoch_ids(order: Order, epoch: int) -> list[list[Sample]]:
    """The batches of an epoch, as (group, row) of every slot."""
    start = epoch * order.steps_per_epoch
    batches = [order.batch(start + u, np.arange(order.global_batch_size)) for u in range(order.steps_per_epoch)]
    assert all(b[0] == epoch for b in batches)
    return [list(zip(g.tolist(), r.tolist())) for _, g, r in batches]


ragged = st.lists(st.integers(1, 9), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(sizes=ragged, seed=st.integers(0, 2**63 - 1), batch=st.integers(1, 5), lanes=st.integers(1, 4))
def test_an_epoch_holds_each_sample_at_most_once_and_nearly_all(
    sizes: list[int], seed: int, batch: int, lanes: int
) -> None:
    if sum(sizes) < batch * lanes:
        return
    order = Order(np.array(sizes), seed, batch, lanes)
    for epoch in range(2):
        seen = [s for b in epoch_ids(order, epoch) for s in b]
        assert len(seen) == len(set(seen))
        assert all(0 <= row < sizes[group] for group, row in seen)
        assert sum(sizes) - len(seen) < batch * lanes


@settings(max_examples=40, deadline=None)
@given(sizes=ragged, seed=st.integers(0, 10**6))
def test_the_sequence_is_the_concatenation_of_permuted_groups(sizes: list[int], seed: int) -> None:
    array, rows = np.array(sizes), max(sizes)
    epoch = Epoch(array, np.flatnonzero(array != rows), rows, seed, 7)
    n = sum(sizes)
    group, row = epoch.locate(np.arange(n))
    rotated = np.roll(group, int(key(seed, 7, 2) % np.uint64(n)))  # undo the rotation
    expected = np.concatenate([[g] * sizes[g] for g in Permutation(len(sizes), key(seed, 7, 1))(np.arange(len(sizes)))])
    assert rotated.tolist() == expected.tolist()
    assert sorted(zip(group.tolist(), row.tolist())) == [(g, r) for g, s in enumerate(sizes) for r in range(s)]


@pytest.mark.parametrize("cuts", [[12], [6, 6], [4, 4, 4], [5, 4, 3], [3, 3, 3, 3], [1] * 12])
def test_any_split_of_slots_over_ranks_sees_the_same_batches(cuts: list[int]) -> None:
    sizes = np.array([8] * 9 + [3])
    whole = epoch_ids(Order(sizes, 5, 12), 0)
    ends = np.cumsum(cuts)
    ranks = [Order(sizes, 5, 12) for _ in cuts]
    for u, batch in enumerate(whole):
        parts = [o.batch(u, np.arange(end - n, end)) for o, n, end in zip(ranks, cuts, ends)]
        assert [s for _, g, r in parts for s in zip(g.tolist(), r.tolist())] == batch


def test_a_step_does_not_depend_on_how_it_was_reached() -> None:
    sizes = np.full(50, 16)
    late = Order(sizes, 1, 8).batch(10_000_019, np.arange(8))
    order = Order(sizes, 1, 8)
    for t in (0, 3, 99, 10_000_018):
        order.batch(t, np.arange(8))
    again = order.batch(10_000_019, np.arange(8))
    assert late[0] == again[0]
    assert late[1].tolist() == again[1].tolist()
    assert late[2].tolist() == again[2].tolist()


def test_epochs_and_seeds_differ_and_leave_out_other_samples() -> None:
    order = Order(np.full(10, 10), 0, 7)
    left = [
        {(g, r) for g in range(10) for r in range(10)} - {s for b in epoch_ids(order, e) for s in b} for e in range(5)
    ]
    assert all(len(one) == 2 for one in left)
    assert len(set().union(*left)) > 2
    assert epoch_ids(order, 0) != epoch_ids(order, 1)
    assert epoch_ids(order, 0) != epoch_ids(Order(np.full(10, 10), 1, 7), 0)


def test_rows_of_a_short_group_are_left_out_as_often_as_others() -> None:
    sizes = np.array([3, 3] + [32] * 4)
    missed = np.zeros(6)
    for epoch in range(300):
        order = Order(sizes, 9, 10)
        for group, _ in {(g, r) for g, s in enumerate(sizes) for r in range(s)} - {
            s for b in epoch_ids(order, epoch) for s in b
        }:
            missed[group] += 1
    rate = missed / sizes
    assert rate[:2].mean() == pytest.approx(rate[2:].mean(), rel=0.25)


@pytest.mark.parametrize("n", [1, 2, 3, 37, 256, 1000])
def test_a_permutation_is_a_bijection_with_its_inverse(n: int) -> None:
    p = Permutation(n, 42)
    there = p(np.arange(n))
    assert sorted(there.tolist()) == list(range(n))
    assert p.inverse(there).tolist() == list(range(n))


def test_permuted_positions_are_uniform() -> None:
    k, seeds = 17, 1500
    counts = np.zeros((k, k))
    for seed in range(seeds):
        counts[np.arange(k), Permutation(k, key(seed, 1))(np.arange(k))] += 1
    chi2_per_freedom = ((counts - seeds / k) ** 2 / (seeds / k)).sum() / (k - 1) ** 2
    assert 0.8 < chi2_per_freedom < 1.2


def test_the_arithmetic_is_ours_for_ever() -> None:
    """Golden numbers: a change of them changes the order of every run, and needs a new order.VERSION."""
    assert hex(int(mix(np.uint64(0)))) == "0xe220a8397b1dcdaf"  # splitmix64's published first output of seed 0
    assert Permutation(10, 3)(np.arange(10)).tolist() == [3, 7, 9, 8, 6, 1, 4, 5, 0, 2]
    _, group, row = Order(np.array([4, 4, 4, 2]), 11, 3).batch(5, np.arange(3))
    assert (group.tolist(), row.tolist()) == ([3, 2, 0], [1, 2, 2])


def test_a_split_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(DataError, match=r"5 samples, but .*global_batch_size=4 needs at least 8\. .* to 2 or less"):
        Order(np.array([3, 2]), 0, 4, 2)
