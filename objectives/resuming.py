"""A run as a checkpoint and back: weights, optimizer, schedule, random states, position, evaluations."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch

from objectives import checkpoints
from objectives.checkpoints import Checkpoint, Tensors
from objectives.optimization import Optimization
from objectives.progress import Fit, Interruptions, Progress


class Keeper:
    """Writes a run's checkpoints, if it has a place for them."""

    def __init__(self, optimization: Optimization, run: Fit, interruptions: Interruptions) -> None:
        self._optimization, self._run, self._interruptions = optimization, run, interruptions
        self._kept_at = time.monotonic()

    def now_and_then(self) -> None:
        """At most once in `every_s`."""
        if time.monotonic() - self._kept_at >= self._interruptions.every_s:
            self.now()

    def now(self) -> None:
        if self._interruptions.folder is not None:
            checkpoint = _checkpoint(self._optimization, self._run, self._interruptions.trial)
            checkpoints.save(self._interruptions.folder, self._run.batches, checkpoint)
            self._interruptions.on_checkpoint()
        self._kept_at = time.monotonic()


def resume(optimization: Optimization, interruptions: Interruptions) -> Fit:
    """The run as its newest checkpoint left it, model and optimizer too; a new one where there is none."""
    folder, trial = interruptions.folder, interruptions.trial
    found = checkpoints.newest(folder, lambda facts: facts["trial"] == trial) if folder else None
    if found is None:
        return Fit()
    facts, tensors = found.facts, found.tensors
    optimization.encoder.model.load_state_dict(_part(tensors, "model"))
    moments: dict[int, Tensors] = {}
    for name, tensor in _part(tensors, "optimizer").items():
        number, moment = name.split(".", 1)
        moments.setdefault(int(number), {})[moment] = tensor
    optimization.optimizer.load_state_dict({"state": moments, "param_groups": facts["param_groups"]})
    optimization.scheduler.load_state_dict(facts["schedule"])
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
    curve = [Progress(**progress) for progress in facts["curve"]]
    best = None if facts["best"] is None else curve[facts["best"]]
    return Fit(
        batches=facts["batches"],
        examples=facts["examples"],
        curve=curve,
        best=best,
        best_weights={name: tensor.to(_device(optimization)) for name, tensor in _part(tensors, "best").items()},
        evaluations_since_best=facts["evaluations_since_best"],
        train_s=facts["train_s"],
    )


def _checkpoint(optimization: Optimization, run: Fit, trial: str) -> Checkpoint:
    optimizer = optimization.optimizer.state_dict()
    schedule = {key: value for key, value in optimization.scheduler.state_dict().items() if key != "lr_lambdas"}
    facts: dict[str, Any] = {
        "trial": trial,
        "batches": run.batches,
        "examples": run.examples,
        "curve": [asdict(progress) for progress in run.curve],
        "best": run.curve.index(run.best) if run.best else None,
        "evaluations_since_best": run.evaluations_since_best,
        "train_s": run.train_s,
        "param_groups": optimizer["param_groups"],
        "schedule": schedule | {"lr_lambdas": [None]},
    }
    tensors = _named("model", optimization.encoder.model.state_dict()) | _named("best", run.best_weights)
    for number, moments in optimizer["state"].items():
        tensors |= _named(f"optimizer.{number}", moments)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return Checkpoint(facts, tensors)


def _named(part: str, tensors: Tensors) -> Tensors:
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def _part(tensors: Tensors, part: str) -> Tensors:
    return {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}


def _device(optimization: Optimization) -> torch.device:
    return next(optimization.encoder.model.parameters()).device
