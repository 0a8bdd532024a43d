"""Training pairs: what each choice of a search asks for is what comes out, the same for the same seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from objectives.config import Columns, Incidents, Labels, Mining, Pairs, TrialConfig
from objectives.data import load_data, needs_model, train_pairs
from objectives.grades import grade, make_ladder
from objectives.incidents import IncidentTable, IntArray, read_incidents
from objectives.mining import TrainPairs, from_bytes, mine, to_bytes
from objectives.nearness import NO_MODEL, Encode, make_vectors, similarity
from objectives.reading import DataError
from tests.unit.test_pairs import large_table, make_table, unordered

COLUMNS = Columns(duplicate_of="duplicate_of")
LADDER = make_ladder(Labels(), COLUMNS)
few = settings(derandomize=True, max_examples=25, deadline=None, database=None)


def mined(table: IncidentTable, seed: int = 0, **choices: Any) -> TrainPairs:
    return mine(table, LADDER, np.arange(len(table)), Mining.model_validate(choices), seed, NO_MODEL)


@pytest.fixture(scope="module")
def table(incidents_csv: Path) -> IncidentTable:
    return read_incidents(Incidents(path=str(incidents_csv), columns=COLUMNS))


@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 20)), min_size=8, max_size=60), st.integers(0, 99))
@few
def test_training_pairs_share_a_label_and_differ_in_text(rows: list[tuple[int, int]], seed: int) -> None:
    subcategory, text = np.array(rows).T
    table = make_table(subcategory // 2, subcategory, text=text)
    try:
        ends = mined(table, seed, train_pairs=200).ends
    except DataError:
        known = {row for row in rows if row[0] >= 0}
        assert len(known) == len({label for label, _ in known})  # indeed no label with two texts
        return
    a, b = ends.T
    assert (text[a] != text[b]).all()
    assert ((subcategory[a] == subcategory[b]) & (subcategory[a] >= 0)).all()
    assert len(unordered(ends)) == len(ends)


def test_linked_incidents_of_other_subcategories_are_training_pairs_too() -> None:
    table = make_table([0, 1, 2, 3], [0, 1, 2, -1], cluster=[0, 0, 1, 1])
    assert unordered(mined(table).ends) == {(0, 1), (2, 3)}


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(DataError, match="no two training incidents make a positive pair"):
        mined(make_table([0, 0, 0], [0, 1, 2]))


ALL: dict[str, Any] = {
    "hard_negatives": "jaccard",
    "class_balance": "sqrt",
    "positives": "graded",
}


def test_pairs_are_a_function_of_the_seed(table: IncidentTable) -> None:
    first, same, other = (mined(table, seed, train_pairs=500, **ALL) for seed in (0, 0, 1))
    assert np.array_equal(first.ends, same.ends)
    assert len(unordered(first.ends[:, :2]) & unordered(other.ends[:, :2])) < 100


def test_training_pairs_and_validation_pairs_have_no_incident_in_common(incidents_csv: Path) -> None:
    incidents = Incidents(path=str(incidents_csv), columns=COLUMNS)
    mining = Mining(train_pairs=2_000, hard_negatives="tfidf")
    config = TrialConfig(incidents=incidents, pairs=Pairs(held_out=1_000), mining=mining, model="none")
    data = load_data(config)
    validation = np.concatenate([data.validation.anchors, data.validation.others])
    assert not set(data.table.group[train_pairs(data, config).ends.ravel()]) & set(data.table.group[validation])


def test_graded_positives_are_of_every_tie_by_its_grade() -> None:
    table = large_table(4_000)
    ends = mined(table, positives="graded", train_pairs=3_000).ends
    grades, counts = np.unique(grade(table, LADDER, *ends.T), return_counts=True)
    duplicates = counts[2]  # scarce: all there are
    assert (grades.tolist(), duplicates > 150, sum(counts)) == ([0.25, 0.5, 1.0], True, 3_000)
    assert counts[1] / counts[0] == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize(("balance", "share"), [("off", 0.9), ("sqrt", 0.75), ("oversample", 0.5)])
def test_class_balance_draws_a_class_by_its_size_or_its_root_or_like_any(balance: str, share: float) -> None:
    subcategory = (np.arange(1_000) >= 900).astype(np.int64)  # sizes 9 : 1
    ends = mined(make_table(subcategory, subcategory), class_balance=balance, train_pairs=4_000).ends
    assert np.mean(subcategory[ends[:, 0]] == 0) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("positives", ["same_subcategory", "graded"])
@pytest.mark.parametrize("balance", ["sqrt", "oversample"])
def test_class_balance_does_not_repeat_what_few_duplicates_there_are(positives: str, balance: str) -> None:
    subcategory = np.arange(900) // 30
    cluster = np.arange(900)
    cluster[1] = 0
    table = make_table(subcategory // 2, subcategory, cluster=cluster)
    ends = mined(table, class_balance=balance, positives=positives, train_pairs=2_000).ends
    assert len(ends) == 2_000
    assert np.sum(table.cluster[ends[:, 0]] == table.cluster[ends[:, 1]]) < 20


def test_an_anchor_without_a_hard_negative_is_left_out() -> None:
    """Of a subcategory that is not known, in a category that is all there is."""
    table = make_table([0] * 5, [0, 0, -1, -1, 1], cluster=[0, 1, 2, 2, 3])
    ends = mined(table, hard_negatives="tfidf").ends
    assert unordered(ends[:, :2]) == {(0, 1)}
    assert ends[:, 2].tolist() == [4]


def test_thresholds_leave_positives_that_are_neither_too_easy_nor_too_far(table: IncidentTable) -> None:
    ends = mined(table, min_similarity=0.1, max_similarity=0.4, train_pairs=300).ends
    vectors = make_vectors("tfidf", table.texts, np.arange(len(table)), NO_MODEL)
    found = similarity(vectors, *ends.T)  # words weigh a little otherwise over all incidents
    assert 250 < len(ends) <= 300
    assert np.mean((found > 0.08) & (found < 0.45)) > 0.98


def test_thresholds_that_no_positive_passes_are_refused(table: IncidentTable) -> None:
    with pytest.raises(DataError, match="no two training incidents make a positive pair"):
        mined(table, min_similarity=0.999, train_pairs=300)


def test_thresholds_by_a_model_ask_it_for_the_texts_concerned(table: IncidentTable) -> None:
    vectors = np.random.default_rng(0).normal(size=(len(table), 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    config = Mining(similarity="model", min_similarity=0.5, train_pairs=200)
    ends = mine(table, LADDER, np.arange(len(table)), config, 0, lambda numbers: vectors[numbers]).ends
    assert (vectors[ends[:, 0]] * vectors[ends[:, 1]]).sum(1).min() >= 0.5 - 1e-6


def words(text: str) -> set[str]:
    return set(text.lower().split())


@pytest.mark.parametrize("kind", ["tfidf", "jaccard"])
def test_hard_negatives_are_alike_in_words_and_not_by_label(table: IncidentTable, kind: str) -> None:
    ends = mined(table, hard_negatives=kind, hard_negatives_per_pair=3, train_pairs=400).ends
    anchors, negatives = np.repeat(ends[:, 0], 3), ends[:, 2:].ravel()
    assert ends.shape == (400, 5)
    assert (table.subcategory[anchors] != table.subcategory[negatives]).all()
    assert (table.group[anchors] != table.group[negatives]).all()
    assert all(len(set(row)) == 3 for row in ends[:, 2:].tolist())
    random = np.random.default_rng(0).permutation(negatives)
    shared = [
        np.mean([len(words(table.texts[a]) & words(table.texts[b])) for a, b in zip(anchors, others, strict=True)])
        for others in (negatives, random)
    ]
    assert shared[0] > 1.5 * shared[1]


def test_hard_negatives_are_those_that_brute_force_finds() -> None:
    texts = ["mail server down", "mail server slow", "printer jam", "mail server gone", "printer on fire", "vpn"] * 4
    texts = [f"{text} w{number}" for number, text in enumerate(texts)]
    table = replace(make_table(np.arange(24) % 6, np.arange(24) % 6), texts=texts)
    vectors = make_vectors("jaccard", texts, np.arange(24), NO_MODEL)
    ends = mined(table, hard_negatives="jaccard", train_pairs=50, hard_negatives_per_pair=2).ends
    for anchor, *negatives in ends[:, [0, 2, 3]].tolist():
        others = np.flatnonzero(table.subcategory != table.subcategory[anchor])
        found = similarity(vectors, np.full(len(others), anchor), others)
        twenty = np.sort(found)[-20]
        assert similarity(vectors, np.array([anchor] * 2), np.array(negatives)).min() >= twenty


def test_the_most_alike_negatives_can_be_skipped() -> None:
    table, encode = circle(100)
    near, far = (
        mine(table, LADDER, np.arange(100), Mining(hard_negatives="model", hard_negative_skip=skip), 0, encode).ends
        for skip in (0, 30)
    )
    assert near_degrees(near).max() < near_degrees(far).min()


def circle(size: int) -> tuple[IncidentTable, Encode]:
    """Incidents on a circle, every second of one subcategory."""
    angles = np.arange(size) * 2 * np.pi / size
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    subcategory = np.arange(size) % 2

    def encode(numbers: IntArray) -> NDArray[np.float32]:
        return vectors[numbers]

    return make_table(subcategory, subcategory), encode


def near_degrees(ends: IntArray) -> IntArray:
    """Places on the circle between anchor and hard negative."""
    apart = np.abs(ends[:, 0] - ends[:, 2])
    return np.asarray(np.minimum(apart, 100 - apart))


def test_an_incident_whose_subcategory_is_unknown_is_no_negative_within_its_category() -> None:
    table = make_table([0, 0, 0, 1], [0, 0, -1, 1])
    ends = mined(table, hard_negatives="tfidf").ends
    assert ends[:, 2].tolist() == [3]


def test_one_class_alone_has_no_hard_negatives_and_is_refused() -> None:
    with pytest.raises(DataError, match="no training incident has a hard negative: nothing of another subcategory"):
        mined(make_table([0, 0, 0], [0, 0, 0]), hard_negatives="tfidf")


def test_mined_pairs_are_the_same_after_a_stay_on_disk(table: IncidentTable) -> None:
    found = TrainPairs(mined(table, train_pairs=200, **ALL).ends, ["größer", "\n"], np.array([3, 1]))
    again = from_bytes(to_bytes(found))
    assert np.array_equal(found.ends, again.ends)
    assert (found.altered, found.sources.tolist()) == (again.altered, again.sources.tolist())


def test_a_model_is_needed_only_where_it_measures() -> None:
    assert not needs_model(Mining(similarity="model"))
    assert needs_model(Mining(similarity="model", max_similarity=0.9))
    assert needs_model(Mining(hard_negatives="model"))
    assert not needs_model(Mining(hard_negatives="tfidf", min_similarity=0.1))


def test_thresholds_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match=r"min_similarity 0\.5 is not below max_similarity 0\.5"):
        Mining(min_similarity=0.5, max_similarity=0.5)
