"""What a complete trial records of its model for the plots: true to the pairs, and small."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from objectives.config import Columns, Incidents, Labels, Pairs, TrialConfig
from objectives.data import load_data
from objectives.diagnosis import BINS, RECALLS, diagnose, seen_pairs
from objectives.evaluation import FloatArray, Ranking, rank_pairs, score

MOST_BYTES = 2_048  # of JSON


def drawn(pairs: int, levels: int = 3, seed: int = 0) -> tuple[Ranking, FloatArray, NDArray[np.bool_]]:
    """A ranking of pairs whose cosines rise with their grade, the cosines, and which are matches."""
    rng = np.random.default_rng(seed)
    grades = np.linspace(0, 1, levels)[np.arange(pairs) % levels]
    cosines = np.tanh(rng.normal(grades - 0.4, 0.5))
    return rank_pairs(cosines, grades, 0.5), cosines, grades >= 0.5


def test_every_point_of_the_curve_is_what_its_threshold_gives() -> None:
    ranking, cosines, is_match = drawn(5_000)
    points = diagnose(ranking, score(ranking)["threshold"])["precision_recall"]
    for recall, precision, threshold in points:
        retrieved = cosines >= threshold - 5e-5  # thresholds are rounded
        assert recall == pytest.approx(retrieved[is_match].mean(), abs=2e-3)
        assert precision == pytest.approx(is_match[retrieved].mean(), abs=2e-2)


def test_curve_runs_from_the_first_match_to_the_last_in_equal_steps_of_recall() -> None:
    ranking, _, _ = drawn(5_000)
    recalls = [point[0] for point in diagnose(ranking, score(ranking)["threshold"])["precision_recall"]]
    assert (len(recalls), recalls[-1]) == (RECALLS, 1.0)
    assert recalls[0] < 0.001
    assert all(0 <= b - a < 0.04 for a, b in pairwise(recalls))


def test_curve_holds_the_frozen_threshold_with_its_f1() -> None:
    ranking, _, _ = drawn(5_000)
    found = score(ranking)
    (frozen,) = [
        point
        for point in diagnose(ranking, found["threshold"])["precision_recall"]
        if point[2] == round(found["threshold"], 4)
    ]
    recall, precision, _ = frozen
    assert 2 * recall * precision / (recall + precision) == pytest.approx(found["f1"], abs=1e-3)


def test_histogram_counts_every_pair_once_by_its_grade() -> None:
    ranking, cosines, _ = drawn(3_001)
    found = diagnose(ranking, 0.0)["similarities"]
    assert found["edges"] == [round(cosines.min(), 4), round(cosines.max(), 4)]
    assert {grade: sum(counts) for grade, counts in found["counts"].items()} == {"0": 1001, "0.5": 1000, "1": 1000}
    assert {len(counts) for counts in found["counts"].values()} == {BINS}


def test_calibration_has_equally_many_pairs_in_each_part_and_their_share_of_matches() -> None:
    ranking, cosines, is_match = drawn(1_005)
    found = diagnose(ranking, 0.0)
    predicted, shares, pairs = map(np.array, zip(*found["calibration"], strict=True))
    assert found["calibrated"] == "cosine"
    assert pairs.tolist() == [101] * 5 + [100] * 5
    assert (np.diff(predicted) > 0).all()
    assert shares @ pairs == pytest.approx(is_match.sum(), abs=0.2)
    assert predicted @ pairs == pytest.approx(cosines.sum(), abs=0.2)


def test_calibration_is_of_the_heads_probabilities_where_there_are_any() -> None:
    ranking, _, is_match = drawn(1_000)
    found = diagnose(ranking, 0.0, np.where(is_match, 0.9, 0.1))
    assert found["calibrated"] == "head"
    assert [part[:2] for part in found["calibration"][:3]] == [[0.1, 0.0]] * 3
    assert found["calibration"][-1][:2] == [0.9, 1.0]


def test_largest_diagnosis_stays_below_two_kibibytes() -> None:
    """As many pairs as there are ever, of all grades, nearly all counts with four digits."""
    ranking, _, _ = drawn(225_000, levels=5)
    found = diagnose(ranking, score(ranking)["threshold"])
    assert max(len(str(count)) for counts in found["similarities"]["counts"].values() for count in counts) >= 4
    assert len(json.dumps(found)) <= MOST_BYTES


@pytest.mark.parametrize("pairs", [3, 9])
def test_few_pairs_give_fewer_points_and_no_nan(pairs: int) -> None:
    ranking, _, _ = drawn(pairs)
    found = diagnose(ranking, score(ranking)["threshold"])
    assert json.dumps(found, allow_nan=False)
    assert sum(part[2] for part in found["calibration"]) == pairs
    assert all(0 <= number <= 1 for point in found["precision_recall"] for number in point[:2])


def config_of(path: Path, labels: Labels | None = None, **columns: Any) -> TrialConfig:
    incidents = Incidents(path=str(path), columns=Columns(**columns))
    return TrialConfig(incidents=incidents, labels=labels or Labels(), pairs=Pairs(held_out=1000), model="any")


def test_seen_pairs_are_of_training_incidents_as_many_as_every_evaluation_encodes(incidents_csv: Path) -> None:
    config = config_of(incidents_csv, duplicate_of="duplicate_of")
    data, pairs = load_data(config), seen_pairs(config)
    assert pairs is not None
    seen, held_out = (np.union1d(found.anchors, found.others) for found in (pairs, data.validation))
    assert set(seen) <= set(data.splits["train"])
    assert 0.8 * len(held_out) <= len(seen) <= len(held_out)
    assert np.mean(pairs.grades >= 0.5) == pytest.approx(np.mean(data.validation.grades >= 0.5), abs=0.01)


def test_seen_pairs_hold_linked_incidents_together(incidents_csv: Path) -> None:
    config = config_of(incidents_csv, duplicate_of="duplicate_of")
    pairs = seen_pairs(config)
    assert pairs is not None
    assert (pairs.grades == 1.0).sum() > 0


def test_seen_pairs_are_made_once_for_the_trials_of_a_study(incidents_csv: Path) -> None:
    config = config_of(incidents_csv, duplicate_of="duplicate_of")
    assert seen_pairs(config) is seen_pairs(config.model_copy(update={"seed": 7, "model": "another"}))


def test_without_a_match_among_the_training_incidents_there_are_no_seen_pairs(tmp_path: Path) -> None:
    """All links are between incidents that came late, so validation and test have them all."""
    rows = ["number,description,category,subcategory,duplicate_of,opened"]
    for n in range(200):
        linked = f"i{n - 1}" if n >= 140 and n % 2 else ""
        opened = f"2024-01-01 00:{n // 60:02}:{n % 60:02}"
        rows.append(f"i{n},word{n}a word{n}b word{n}c,c{n % 2},s{n % 4},{linked},{opened}")
    (tmp_path / "incidents.csv").write_text("\n".join(rows))
    columns = {"text": ("description",), "duplicate_of": "duplicate_of", "opened": "opened"}
    config = config_of(tmp_path / "incidents.csv", Labels(positive="duplicate"), **columns)
    assert len(load_data(config).validation.grades) > 0
    assert seen_pairs(config) is None
