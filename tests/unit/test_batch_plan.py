"""Properties of the batch plan: which rows make a step never depends on how they are laid out."""

from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.batch_plan import BatchPlan, Step

checked = settings(derandomize=True, deadline=None, max_examples=200)


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    lengths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=40))
    trained = [draw(st.integers(0, length - 1)) for length in lengths]
    return BatchPlan(
        lengths=np.array(lengths, dtype=np.int64),
        trained=np.array(trained, dtype=np.int64),
        batch=draw(st.integers(1, 17)),
        world=draw(st.integers(1, 5)),
        tokens_cap=draw(st.integers(1, 600)),
        rows_cap=draw(st.integers(1, 9)),
        packed=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31 - 1)),
        shuffled=draw(st.booleans()),
    )


def steps_of(plan: BatchPlan, epoch: int) -> list[Step]:
    return [plan.step(epoch, index) for index in range(plan.steps_per_epoch)]


def bins_of(step: Step) -> list[list[int]]:
    return [rows for rank in step.micro_batches for rows in rank]


def rows_of(step: Step) -> list[int]:
    return [row for rows in bins_of(step) for row in rows]


@checked
@given(plan=plans(), epoch=st.integers(0, 5))
def test_every_row_is_used_exactly_once_an_epoch(plan: BatchPlan, epoch: int) -> None:
    used = Counter(row for step in steps_of(plan, epoch) for row in rows_of(step))
    assert used == Counter(range(len(plan.lengths)))


@checked
@given(plan=plans(), epoch=st.integers(0, 5))
def test_a_step_has_exactly_the_batch_and_the_last_one_the_rest(
    plan: BatchPlan, epoch: int
) -> None:
    sizes = [len(rows_of(step)) for step in steps_of(plan, epoch)]
    assert sizes[:-1] == [plan.batch] * (len(sizes) - 1)
    assert sizes[-1] == (len(plan.lengths) - 1) % plan.batch + 1


@checked
@given(plan=plans(), other=plans(), epoch=st.integers(0, 5))
def test_layout_and_world_size_never_change_a_step(
    plan: BatchPlan, other: BatchPlan, epoch: int
) -> None:
    layout = {name: getattr(other, name) for name in ("world", "tokens_cap", "rows_cap", "packed")}
    moved = replace(plan, **layout)
    assert moved.steps_per_epoch == plan.steps_per_epoch
    for one, two in zip(steps_of(plan, epoch), steps_of(moved, epoch), strict=True):
        assert sorted(rows_of(one)) == sorted(rows_of(two))
        assert (one.tokens, one.trained_tokens) == (two.tokens, two.trained_tokens)


@checked
@given(plan=plans())
def test_all_ranks_meet_equally_often(plan: BatchPlan) -> None:
    for step in steps_of(plan, 0):
        assert len(step.micro_batches) == plan.world
        assert len({len(rank) for rank in step.micro_batches}) == 1


@checked
@given(plan=plans())
def test_a_packed_micro_batch_stays_within_the_cap_unless_one_row_is_longer(
    plan: BatchPlan,
) -> None:
    packed = replace(plan, packed=True)
    for step in steps_of(packed, 0):
        limit = max(packed.tokens_cap, max(packed.lengths[row] for row in rows_of(step)))
        assert all(sum(packed.lengths[row] for row in rows) <= limit for rows in bins_of(step))


@checked
@given(plan=plans())
def test_packed_micro_batches_are_half_full_on_average(plan: BatchPlan) -> None:
    packed = replace(plan, packed=True)
    for step in steps_of(packed, 0):
        limit = max(packed.tokens_cap, max(packed.lengths[row] for row in rows_of(step)))
        # A row that finds no place is no longer than any before it: all bins are over half full.
        enough = -(-2 * step.tokens // (limit * packed.world)) + 1
        assert len(step.micro_batches[0]) <= enough


@checked
@given(plan=plans())
def test_a_padded_micro_batch_has_at_most_the_rows_asked_for(plan: BatchPlan) -> None:
    padded = replace(plan, packed=False)
    for step in steps_of(padded, 0):
        assert all(len(rows) <= padded.rows_cap for rows in bins_of(step))
        share = -(-len(rows_of(step)) // padded.world)
        assert len(step.micro_batches[0]) == -(-share // padded.rows_cap)


@checked
@given(plan=plans())
def test_a_bin_is_empty_only_where_there_are_more_bins_than_rows(plan: BatchPlan) -> None:
    for step in steps_of(plan, 0):
        bins, rows = bins_of(step), rows_of(step)
        assert sum(not part for part in bins) == max(len(bins) - len(rows), 0)
        if len(rows) >= plan.world:  # no rank idles through a whole step, none idles twice
            assert all(sum(not part for part in rank) <= 1 for rank in step.micro_batches)
            assert all(any(rank) for rank in step.micro_batches)


@checked
@given(plan=plans(), epoch=st.integers(0, 5))
def test_token_counts_are_those_of_the_rows(plan: BatchPlan, epoch: int) -> None:
    for step in steps_of(plan, epoch):
        assert step.tokens == sum(plan.lengths[row] for row in rows_of(step))
        assert step.trained_tokens == sum(plan.trained[row] for row in rows_of(step))


@checked
@given(plan=plans(), epoch=st.integers(0, 5))
def test_the_same_seed_gives_the_same_plan(plan: BatchPlan, epoch: int) -> None:
    assert steps_of(replace(plan), epoch) == steps_of(plan, epoch)


def a_plan(rows: int = 30, **changes: object) -> BatchPlan:
    lengths = np.arange(10, 10 + rows, dtype=np.int64)
    plan = BatchPlan(
        lengths=lengths, trained=lengths - 1, batch=4, world=2, tokens_cap=64, rows_cap=2,
        packed=True, seed=7,
    )  # fmt: skip
    return replace(plan, **changes)  # type: ignore[arg-type]


def test_another_epoch_and_another_seed_have_another_order() -> None:
    plan = a_plan()
    orders = [tuple(plan.order(0)), tuple(plan.order(1)), tuple(a_plan(seed=8).order(0))]
    assert len(set(orders)) == 3


def test_evaluation_keeps_the_order_of_the_rows() -> None:
    plan = a_plan(shuffled=False)
    assert [sorted(rows_of(step)) for step in steps_of(plan, 3)][:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_rank_without_rows_still_gets_a_micro_batch() -> None:
    for packed in (True, False):
        assert a_plan(rows=1, packed=packed).step(0, 0).micro_batches == [[[0]], [[]]]


def test_ranks_share_the_tokens_of_a_packed_step_evenly() -> None:
    step = a_plan(batch=30, tokens_cap=10_000).step(0, 0)
    shares = [
        sum(a_plan().lengths[row] for rows in rank for row in rows) for rank in step.micro_batches
    ]
    assert max(shares) - min(shares) <= 10


def test_the_rank_that_got_the_longest_rows_gets_the_shortest_next() -> None:
    lengths = np.array([40, 30, 20, 10], dtype=np.int64)
    plan = a_plan(rows=4, lengths=lengths, trained=lengths - 1, tokens_cap=40)
    assert plan.step(0, 0).micro_batches == [[[0], [3]], [[1], [2]]]


def test_padding_puts_rows_of_like_length_together() -> None:
    plan = a_plan(packed=False, batch=30, rows_cap=5)
    computed = sum(
        len(rows) * max(plan.lengths[row] for row in rows) for rows in bins_of(plan.step(0, 0))
    )
    assert computed == plan.lengths.sum() + 6 * (0 + 1 + 2 + 3 + 4)
