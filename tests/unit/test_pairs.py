"""Splits, grades and pairs: nothing leaks, shares are as declared, and nothing enumerates all pairs."""

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from objectives.config import Columns, Incidents, Labels, Mining, Pairs, Splits
from objectives.grades import grade, make_ladder
from objectives.incidents import IncidentTable, IntArray, read_incidents
from objectives.mining import mine
from objectives.nearness import NO_MODEL
from objectives.pairs import held_out_pairs, split_incidents
from objectives.reading import DataError

COLUMNS = Columns(duplicate_of="duplicate_of")
LADDER = make_ladder(Labels(), COLUMNS)
few = settings(derandomize=True, max_examples=25, deadline=None, database=None)


def make_table(
    category: ArrayLike,
    subcategory: ArrayLike,
    text: ArrayLike | None = None,
    cluster: ArrayLike | None = None,
    item: ArrayLike | None = None,
    opened: ArrayLike | None = None,
) -> IncidentTable:
    """Without texts and clusters, every incident has its own."""
    own = np.arange(len(np.asarray(category)), dtype=np.int64)
    clusters = own if cluster is None else np.asarray(cluster)
    return IncidentTable(
        ids=[str(number) for number in own],
        texts=[f"text {number}" for number in own],
        category=np.array(category),
        category_names=[],
        subcategory=np.array(subcategory),
        configuration_item=np.full(len(own), -1) if item is None else np.asarray(item),
        assignment_group=np.full(len(own), -1),
        item=np.full(len(own), -1) if item is None else np.asarray(item),
        text_number=own if text is None else np.asarray(text),
        cluster=clusters,
        group=clusters,
        opened=None if opened is None else np.asarray(opened, dtype=np.float64),
        dropped=0,
        changed={},
    )


def large_table(size: int = 40_000, seed: int = 0) -> IncidentTable:
    """Ten categories of ten subcategories; one incident in twenty is a duplicate of the one before."""
    rng = np.random.default_rng(seed)
    subcategory = rng.integers(100, size=size)
    cluster = np.cumsum(rng.random(size) > 0.05) - 1
    return make_table(subcategory // 10, subcategory, cluster=cluster - cluster.min())


def unordered(ends: IntArray) -> set[tuple[int, ...]]:
    return {tuple(sorted(pair)) for pair in ends.tolist()}


@given(st.lists(st.integers(0, 30), min_size=1, max_size=100), st.integers(0, 99))
@few
def test_every_incident_is_in_one_split_and_no_group_is_divided(groups: list[int], seed: int) -> None:
    dense = np.unique(groups, return_inverse=True)[1]
    table = make_table(dense, dense, cluster=dense)
    members = split_incidents(table, Splits(validation=0.3, test=0.2, seed=seed))
    assert sorted(np.concatenate(list(members.values()))) == list(range(len(groups)))
    inside = [set(dense[numbers]) for numbers in members.values()]
    assert sum(map(len, inside)) == len(set.union(*inside))


def test_splits_of_incidents_that_are_linked_or_equal_share_nothing(incidents_csv: Path) -> None:
    table = read_incidents(Incidents(path=str(incidents_csv), columns=COLUMNS))
    members = split_incidents(table, Splits()).values()
    for classes in (table.cluster, table.text_number):
        inside = [set(classes[numbers]) for numbers in members]
        assert sum(map(len, inside)) == len(set.union(*inside)) < len(table)


def test_splits_have_their_declared_shares_and_follow_their_seed() -> None:
    table = large_table()
    members, other = (split_incidents(table, Splits(validation=0.2, test=0.1, seed=seed)) for seed in (0, 1))
    shares = {name: len(numbers) / len(table) for name, numbers in members.items()}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.2, "test": 0.1}, abs=0.01)
    assert not np.array_equal(members["test"], other["test"])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(0, 1, 0.5), (0, 2, 0.25), (0, 4, 0.0), (0, 3, np.nan), (3, 4, 0.0), (3, 7, np.nan), (5, 6, 1.0), (0, 5, 0.0)],
    ids=["subcategory", "category", "other", "unknown", "unknown elsewhere", "both unknown", "linked", "other again"],
)
def test_grades_follow_the_ladder(one: int, other: int, expected: float) -> None:
    table = make_table([0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 1, -1, 2, 2, 1, -1], cluster=[0, 1, 2, 3, 4, 5, 5, 6])
    graded = grade(table, LADDER, np.array([one]), np.array([other]))
    assert graded.tolist() == pytest.approx([expected], nan_ok=True)


def test_by_date_the_latest_groups_are_the_test_and_those_before_the_validation() -> None:
    opened = np.random.default_rng(0).permutation(1_000).astype(float)
    cluster = np.arange(1_000) // 2  # a group is as late as its latest
    table = make_table(cluster, cluster, cluster=cluster, opened=opened)
    members = split_incidents(table, Splits(validation=0.2, test=0.1))
    latest = np.maximum(opened[0::2], opened[1::2])[cluster]
    shares = {name: len(numbers) / 1_000 for name, numbers in members.items()}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.2, "test": 0.1}, abs=0.003)
    assert latest[members["train"]].max() < latest[members["validation"]].min()
    assert latest[members["validation"]].max() < latest[members["test"]].min()


def test_grades_are_as_declared_and_ties_without_data_drop_out() -> None:
    labels = Labels(same_category=0.1, same_subcategory=0.2, near=0.4, positive="near")
    item, cluster = [0, 0, 1, -1, 2, 3], [0, 1, 2, 3, 4, 4]
    table = make_table([0] * 6, [0, 0, 0, 0, 1, 2], item=item, cluster=cluster)
    anchors, others = np.array([0, 0, 0, 0, 4]), np.array([1, 2, 3, 4, 5])
    whole = make_ladder(labels, Columns(configuration_item="cmdb_ci", duplicate_of="duplicate_of"))
    assert grade(table, whole, anchors, others).tolist() == [0.4, 0.2, 0.2, 0.1, 1.0]
    assert (whole.positive, list(whole.positives)) == (0.4, ["near", "duplicate"])
    without = make_ladder(labels, Columns())
    assert grade(table, without, anchors, others).tolist() == [0.2, 0.2, 0.2, 0.1, 0.1]
    assert (without.positive, list(without.positives)) == (0.2, ["same_subcategory"])


def test_grades_that_do_not_ascend_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ascend.*0\.25, 0\.5, 0\.5, 1\.0"):
        Labels(near=0.5)


def test_positives_are_of_all_their_grades_alike_as_far_as_each_has_so_many() -> None:
    rng = np.random.default_rng(0)
    subcategory = rng.integers(20, size=4_000)
    item = np.where(rng.random(4_000) < 0.5, subcategory * 10 + rng.integers(10, size=4_000), -1)
    cluster = np.cumsum(rng.random(4_000) > 0.05) - 1
    table = make_table(subcategory // 4, subcategory, cluster=cluster, item=item)
    ladder = make_ladder(Labels(), Columns(configuration_item="cmdb_ci", duplicate_of="duplicate_of"))
    config = Pairs(held_out=5_000, positive_share=0.6, same_category_share=0.2)
    grades = held_out_pairs(table, ladder, np.arange(4_000), config).grades
    shares = {level: float(np.mean(grades == level)) for level in (0.0, 0.25, 0.5, 0.75, 1.0)}
    duplicates = shares[1.0]
    assert 0.02 < duplicates < 0.2
    rest = (0.6 - duplicates) / 2
    assert shares == pytest.approx({0.0: 0.2, 0.25: 0.2, 0.5: rest, 0.75: rest, 1.0: duplicates}, abs=0.01)


def test_held_out_pairs_have_their_declared_shares() -> None:
    table, config = large_table(4_000), Pairs(held_out=5_000, positive_share=0.2, same_category_share=0.3)
    pairs = held_out_pairs(table, LADDER, np.arange(4_000), config)
    shares = [np.mean(pairs.grades >= 0.5), np.mean(pairs.grades == 0.25), np.mean(pairs.grades == 0)]
    assert len(pairs.grades) == 5_000
    assert shares == pytest.approx([0.2, 0.3, 0.5], abs=0.001)
    assert 0 < np.mean(pairs.grades == 1.0) <= 0.1


def test_held_out_pairs_are_of_members_each_once_none_with_itself_none_without_a_grade() -> None:
    table = large_table(600)
    table.subcategory[::3] = -1
    members = np.arange(100, 400)
    pairs = held_out_pairs(table, LADDER, members, Pairs(held_out=3_000))
    ends = np.stack([pairs.anchors, pairs.others], axis=1)
    assert np.isin(ends, members).all()
    assert len(unordered(ends)) == len(ends)
    assert (ends[:, 0] != ends[:, 1]).all()
    assert np.array_equal(pairs.grades, grade(table, LADDER, *ends.T))


@pytest.mark.parametrize(
    ("category", "subcategory"),
    [(np.arange(400) // 4, np.arange(400) // 2), (np.arange(400) // 100, np.maximum(np.arange(400), 8))],
    ids=["few share a category", "few share a subcategory"],
)
def test_a_scarce_grade_shrinks_all_and_keeps_the_shares(category: IntArray, subcategory: IntArray) -> None:
    table = make_table(category, subcategory)
    pairs = held_out_pairs(table, LADDER, np.arange(400), Pairs(held_out=10_000))
    total = len(pairs.grades)
    counts = [np.sum(pairs.grades >= 0.5), np.sum(pairs.grades == 0.25), np.sum(pairs.grades == 0)]
    assert 0 < total < 2_000
    assert counts == pytest.approx([0.135 * total, 0.265 * total, 0.6 * total], abs=2)


@pytest.mark.parametrize("others", [0, 2, 10, 40])
def test_a_scarce_middle_grade_takes_nothing_from_the_others(others: int) -> None:
    """Nearly every category is one subcategory."""
    category = np.arange(3_000) // 60
    subcategory = np.where(np.arange(3_000) % (3_000 // max(others, 1)) == 1, 100 + category, category)
    grades = held_out_pairs(make_table(category, subcategory), LADDER, np.arange(3_000), Pairs(held_out=5_000)).grades
    assert len(grades) == 5_000
    assert np.mean(grades >= 0.5) == pytest.approx(0.135, abs=0.001)


def test_two_columns_that_make_a_pair_near_give_it_once() -> None:
    subcategory = np.arange(900) // 30
    table = make_table(subcategory // 2, subcategory, item=subcategory)
    table.assignment_group[:] = subcategory
    ladder = make_ladder(Labels(), Columns(configuration_item="item", assignment_group="team"))
    pairs = held_out_pairs(table, ladder, np.arange(900), Pairs(held_out=4_000, positive_share=0.5))
    ends = np.stack([pairs.anchors, pairs.others], axis=1)
    assert len(unordered(ends)) == len(ends) == 4_000


def test_without_subcategories_equal_category_is_the_positive_grade() -> None:
    ladder = make_ladder(Labels(), Columns(subcategory=None))
    table = make_table(np.arange(300) // 30, np.arange(300) // 30)
    pairs = held_out_pairs(table, ladder, np.arange(300), Pairs(held_out=1_000))
    assert set(pairs.grades) == {0.0, 0.25}
    assert np.mean(pairs.grades >= ladder.positive) == pytest.approx(0.135, abs=0.01)


@pytest.mark.parametrize(("lacking", "category"), [("negative", [0] * 200), ("positive", list(range(200)))])
def test_a_split_of_one_class_of_pairs_is_refused(lacking: str, category: list[int]) -> None:
    with pytest.raises(DataError, match=f"^no {lacking} pair among the held-out incidents"):
        held_out_pairs(make_table(category, category), LADDER, np.arange(200), Pairs())


def test_twenty_thousand_pairs_of_forty_thousand_incidents_take_little_time_and_memory() -> None:
    table, members = large_table(), np.arange(40_000)
    tracemalloc.start()
    started = time.process_time()
    ends = mine(table, LADDER, members, Mining(), 0, NO_MODEL).ends
    pairs = held_out_pairs(table, LADDER, members, Pairs(held_out=10_000))
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(ends), len(pairs.grades)) == (20_000, 10_000)
    assert seconds < 5
    assert peak < 300e6  # the similarities of all pairs would take 6.4 GB
