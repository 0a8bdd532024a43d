"""Near-duplicates of real tickets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.test_near_duplicates import (
    clusters,
    read_texts,
    share_in_clusters,
    share_of_exact_duplicates_found,
    share_of_plants_found,
)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["office_bugs_2.7k", "helpdesk_5k"])
def test_planted_near_duplicates_of_real_tickets_are_found(real_data: Path, name: str) -> None:
    texts = read_texts(real_data / f"{name}.csv.gz")
    assert share_of_plants_found(texts, seeds=range(5)) >= 0.95
    assert share_of_exact_duplicates_found(texts) == 1


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "in_clusters"),
    [
        ("office_bugs_2.7k", 0.08),
        ("helpdesk_5k", 0.23),
        pytest.param("helpdesk_42k", 0.20, marks=pytest.mark.chaos),  # ten seconds
    ],
)
def test_no_cluster_of_real_tickets_fills_a_split(real_data: Path, name: str, in_clusters: float) -> None:
    cluster = clusters(read_texts(real_data / f"{name}.csv.gz"))
    assert np.bincount(cluster).max() <= len(cluster) / 100
    assert share_in_clusters(cluster) < in_clusters
