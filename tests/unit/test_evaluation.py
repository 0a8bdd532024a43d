"""Scores equal those of scipy and scikit-learn; ceilings and intervals mean what they say."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from objectives.evaluation import (
    METRICS,
    Collapsed,
    FloatArray,
    IntArray,
    Ranking,
    bootstrap_intervals,
    ceilings,
    noise_ceilings,
    rank_pairs,
    score,
    spearman_ceiling,
)

GRADES = (0.0, 0.25, 0.5, 1.0)
POSITIVE = 0.5
few = settings(derandomize=True, max_examples=40, deadline=None, database=None)
TIED = st.lists(st.tuples(st.integers(-4, 4), st.sampled_from(GRADES)), min_size=4, max_size=40)
UNTIED = st.lists(st.tuples(st.integers(), st.sampled_from(GRADES)), min_size=4, max_size=40, unique_by=lambda p: p[0])
PAIRS = st.one_of(TIED, UNTIED)


def ranked(pairs: list[tuple[int, float]]) -> tuple[FloatArray, FloatArray]:
    """Similarities within (-1, 1), in the order of the numbers drawn, and grades that hold both classes."""
    _, order = np.unique([number for number, _ in pairs], return_inverse=True)
    grades = np.array([grade for _, grade in pairs])
    assume(order.max() > 0 and grades.min() < POSITIVE <= grades.max())
    return (2 * order - order.max()) / (order.max() + 1), grades


def f1_from(threshold: float, similarities: FloatArray, grades: FloatArray) -> float:
    predicted, positive = similarities >= threshold, grades >= POSITIVE
    return float(2 * (predicted & positive).sum() / (predicted.sum() + positive.sum()))


@given(PAIRS)
@few
def test_rank_correlations_equal_scipys(pairs: list[tuple[int, float]]) -> None:
    similarities, grades = ranked(pairs)
    scores = score(rank_pairs(similarities, grades, POSITIVE))
    assert scores["spearman"] == pytest.approx(spearmanr(similarities, grades).statistic)
    assert scores["spearman_binary"] == pytest.approx(spearmanr(similarities, grades >= POSITIVE).statistic)


@given(PAIRS)
@few
def test_areas_equal_scikit_learns(pairs: list[tuple[int, float]]) -> None:
    similarities, grades = ranked(pairs)
    scores = score(rank_pairs(similarities, grades, POSITIVE))
    assert scores["roc_auc"] == pytest.approx(roc_auc_score(grades >= POSITIVE, similarities))
    assert scores["pr_auc"] == pytest.approx(average_precision_score(grades >= POSITIVE, similarities))


@given(PAIRS)
@few
def test_best_f1_is_the_best_of_all_thresholds_and_its_threshold_reproduces_it(pairs: list[tuple[int, float]]) -> None:
    similarities, grades = ranked(pairs)
    scores = score(rank_pairs(similarities, grades, POSITIVE))
    assert scores["f1"] == pytest.approx(max(f1_from(threshold, similarities, grades) for threshold in similarities))
    assert scores["f1"] == pytest.approx(f1_from(scores["threshold"], similarities, grades))


@given(PAIRS, st.integers(0, 100))
@few
def test_a_weight_counts_as_that_many_pairs(pairs: list[tuple[int, float]], seed: int) -> None:
    similarities, grades = ranked(pairs)
    times = np.random.default_rng(seed).integers(4, size=len(pairs))
    repeated = np.repeat(grades, times)
    assume(len(repeated) and repeated.min() < POSITIVE <= repeated.max() and np.ptp(np.repeat(similarities, times)))
    weighted = score(rank_pairs(similarities, grades, POSITIVE), times.astype(float))
    written_out = score(rank_pairs(np.repeat(similarities, times), repeated, POSITIVE))
    assert [weighted[metric] for metric in METRICS] == pytest.approx([written_out[metric] for metric in METRICS])


@given(st.lists(st.sampled_from(GRADES), min_size=3, max_size=30))
@few
def test_ceiling_is_the_spearman_of_a_perfect_ranking(grades: list[float]) -> None:
    assume(len(set(grades)) > 1)
    labels = np.sort(grades)
    assert spearman_ceiling(labels) == pytest.approx(spearmanr(np.arange(len(labels)), labels).statistic)


def test_with_thirteen_and_a_half_percent_positives_no_model_passes_0592() -> None:
    grades = np.where(np.arange(100_000) < 13_500, 1.0, 0.0)
    assert ceilings(grades, POSITIVE)["spearman_binary"] == pytest.approx(0.592, abs=5e-4)


@pytest.mark.parametrize("share", [0.05, 0.135, 0.5])
def test_binary_spearman_follows_from_auc_and_the_share_of_positives(share: float) -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(4000) < share * 4000
    scores = score(rank_pairs(rng.normal(size=4000) + positive, positive.astype(float), POSITIVE))
    expected = (2 * scores["roc_auc"] - 1) * np.sqrt(3 * share * (1 - share))
    assert scores["spearman_binary"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("similarities", [[0.3, 0.3, 0.3], [0.1, np.nan, 0.3], [0.1, 0.2, np.inf]])
def test_similarities_that_rank_nothing_are_collapsed(similarities: list[float]) -> None:
    with pytest.raises(Collapsed, match="equal or not finite"):
        rank_pairs(np.array(similarities), np.array([0.0, 0.5, 1.0]), POSITIVE)


def test_grades_of_one_class_are_refused() -> None:
    with pytest.raises(ValueError, match="no two classes"):
        rank_pairs(np.array([0.1, 0.2]), np.array([0.0, 0.25]), POSITIVE)


def hubs(incidents: int = 30) -> tuple[Ranking, IntArray, IntArray]:
    """All pairs of a few incidents whose own vectors decide the similarity: far fewer facts than pairs."""
    rng = np.random.default_rng(3)
    own, topic = rng.normal(size=incidents), rng.integers(3, size=incidents)
    a, b = np.triu_indices(incidents, k=1)
    same = topic[a] == topic[b]
    return rank_pairs(own[a] + own[b] + 0.8 * same, same.astype(float), POSITIVE), a, b


def test_intervals_bracket_the_estimate() -> None:
    ranking, a, b = hubs()
    scores, intervals = score(ranking), bootstrap_intervals(ranking, a, b, seed=0)
    assert set(intervals) == set(METRICS)
    assert all(low < scores[metric] < high for metric, (low, high) in intervals.items())


def test_intervals_are_a_function_of_the_seed() -> None:
    first, same, other = (bootstrap_intervals(*hubs(), seed=seed) for seed in (0, 0, 1))
    assert first == same != other


def test_intervals_are_wider_than_if_pairs_that_share_incidents_were_independent() -> None:
    ranking, a, b = hubs()
    rng, pairs = np.random.default_rng(0), len(a)
    draws = [np.bincount(rng.integers(pairs, size=pairs), minlength=pairs).astype(float) for _ in range(200)]
    low, high = np.percentile([score(ranking, weights)["roc_auc"] for weights in draws], [2.5, 97.5])
    honest = bootstrap_intervals(ranking, a, b, seed=0)["roc_auc"]
    assert honest[1] - honest[0] > 1.5 * (high - low)


def test_intervals_of_a_single_positive_pair_are_finite() -> None:
    ranking = rank_pairs(np.arange(10.0), np.array([1.0] + [0.0] * 9), 0.5)
    intervals = bootstrap_intervals(ranking, np.arange(10), np.arange(10, 20), seed=0)
    assert np.isfinite(list(intervals.values())).all()


def test_the_threshold_separates_adjacent_doubles() -> None:
    low, high = np.nextafter(0.3, 0), 0.3
    assert score(rank_pairs(np.array([low, high]), np.array([0.0, 1.0]), 0.5))["threshold"] == high


def test_spearman_ceilings_are_those_of_brute_force_on_a_hundred_label_sets() -> None:
    """A perfect ranking puts labels in their order and ties nothing."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        labels = np.sort(rng.choice(rng.random(rng.integers(2, 6)), rng.integers(10, 300)))
        if labels[0] < labels[-1]:
            x, y = (rankdata(values) - (len(labels) + 1) / 2 for values in (np.arange(len(labels)), labels))
            brute = float(x @ y / np.sqrt((x @ x) * (y @ y)))
            assert spearman_ceiling(labels) == pytest.approx(brute, abs=1e-9)


@pytest.mark.parametrize(("quality", "share"), [(1.0, 0.135), (0.9, 0.135), (0.6, 0.3)])
def test_noise_ceilings_are_what_knowing_the_true_class_scores(quality: float, share: float) -> None:
    """Labels are redrawn for 1 - quality of the incidents; the truth is then scored against the labels."""
    rng = np.random.default_rng(0)
    shares = np.array([0.4, 0.3, 0.2, 0.1])

    def labelled(truth: IntArray) -> IntArray:
        return np.where(rng.random(truth.shape) < quality, truth, rng.choice(4, truth.shape, p=shares))

    truth = rng.choice(4, (2, 400_000), p=shares)
    labels = labelled(truth)
    positive = labels[0] == labels[1]
    wanted = min(positive.sum() / share, (~positive).sum() / (1 - share))
    chosen = np.concatenate([np.flatnonzero(positive)[: int(wanted * share)],
                             np.flatnonzero(~positive)[: int(wanted * (1 - share))]])  # fmt: skip
    similar, grades = (truth[0] == truth[1])[chosen].astype(float), positive[chosen].astype(float)
    scored = score(rank_pairs(similar, grades, 1.0))
    agreement = float(np.mean(labelled(truth[0]) == labelled(truth[0])))
    ceiling = noise_ceilings(agreement, shares, share)
    assert {metric: scored[metric] for metric in ceiling} == pytest.approx(ceiling, abs=0.006)
