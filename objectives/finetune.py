"""One trial, from incidents to scores: the straight line that a worker, `hpo train` and the tests all call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from objectives.config import AT_ONCE, STATIC, Memory, TrialConfig
from objectives.data import Data, load_data, train_pairs
from objectives.device import device_name, is_deterministic, resolved
from objectives.evaluation import FloatArray, MetricName, Ranking, bootstrap_intervals, ceilings, rank_pairs, score
from objectives.grades import may_be_alike
from objectives.incidents import IntArray
from objectives.model_files import fetch
from objectives.models import Encoder, encode, load_encoder
from objectives.nearness import BoolArray
from objectives.pairs import GradedPairs
from objectives.progress import UNINTERRUPTED, Interruptions, Report, Scores, StopReason
from objectives.stages import stage_weights
from objectives.training import fit

UNTRAINED: dict[str, Scores] = {}  # of the last study in this process


@dataclass(frozen=True)
class Result:
    """What is recorded of a trial; `scores` are of the best evaluation, which the saved model reproduces."""

    scores: Scores
    intervals: dict[str, tuple[float, float]]  # 95 %; empty for a pruned trial
    ceilings: dict[MetricName, float]
    untrained: Scores
    stop_reason: StopReason
    stop_epoch: float
    best_epoch: float
    train_pairs: int
    device: str
    precision: str
    deterministic: bool
    train_s: float = field(compare=False)  # over all runs
    texts_per_s: float = field(compare=False)  # encoded in the last evaluation
    model_mib: float  # as it is saved
    micro_batch: int | None  # None: batches were computed at once
    gradient_checkpointing: bool


@dataclass(frozen=True)
class Finetuned:
    result: Result
    encoder: Encoder

    def save(self, folder: Path) -> None:
        self.encoder.whole().save(str(folder), create_model_card=False)


def finetune(
    config: TrialConfig,
    report: Report,
    interruptions: Interruptions = UNINTERRUPTED,
    memory: Memory = AT_ONCE,
    cache: Path | None = None,
) -> Finetuned:
    """Raises Diverged or Collapsed (these parameters cannot work), Interrupted, or for a broken set-up DataError,
    ModelError, DeviceError or CheckpointError.
    """
    torch.set_num_threads(config.threads)
    data = load_data(config, cache)
    interruptions.check()
    model = _at_hand(config)
    untrained = _untrained(config, model, data, interruptions.check)

    def base_vectors(numbers: IntArray) -> NDArray[np.float32]:
        return encode(load_encoder(model, config.max_seq_tokens, data.table.texts), numbers, interruptions.check)

    mined = train_pairs(data, config, cache, base_vectors)
    weights = stage_weights(config, model, data, interruptions.check, cache)
    encoder = load_encoder(model, config.max_seq_tokens, [*data.table.texts, *mined.altered], weights)
    incident_of = np.concatenate([np.arange(len(data.table)), mined.sources])

    def is_alike(left: IntArray, right: IntArray) -> BoolArray:
        return may_be_alike(data.table, incident_of[left], incident_of[right])

    def evaluate() -> Scores:
        return score(rank_validation(encoder, data, interruptions.check))

    masked = is_alike if config.mining.false_negatives == "mask" else None
    run = fit(encoder, mined, config.training, config.seed, evaluate, report, interruptions, memory, masked)
    began, pairs = time.monotonic(), data.validation
    ranking = rank_validation(encoder, data, interruptions.check)
    encode_s = time.monotonic() - began
    pruned = run.stop_reason == "pruned"
    result = Result(
        scores=score(ranking),
        intervals={} if pruned else bootstrap_intervals(ranking, pairs.anchors, pairs.others, config.pairs.seed),
        ceilings=ceilings(pairs.grades, data.ladder.positive),
        untrained=untrained,
        stop_reason=run.stop_reason,
        stop_epoch=run.curve[-1].epoch,
        best_epoch=run.best.epoch if run.best else 0.0,
        train_pairs=len(mined.ends) or len(mined.labelled),
        device=device_name(),
        precision=resolved(config.training.precision, encoder.model),
        deterministic=is_deterministic(),
        train_s=run.train_s,
        texts_per_s=len(np.union1d(pairs.anchors, pairs.others)) / encode_s,
        model_mib=sum(weights.nbytes for weights in encoder.whole().state_dict().values()) / 2**20,
        **memory.model_dump(),
    )
    return Finetuned(result, encoder)


def rank_validation(encoder: Encoder, data: Data, check: Callable[[], None] = lambda: None) -> Ranking:
    """Every distinct incident is encoded once; similarities are cosines, shape (pairs,)."""
    pairs = data.validation
    return rank_pairs(_similarities(encoder, pairs, check), pairs.grades, data.ladder.positive)


def _similarities(encoder: Encoder, pairs: GradedPairs, check: Callable[[], None]) -> FloatArray:
    numbers, rows = np.unique(np.concatenate([pairs.anchors, pairs.others]), return_inverse=True)
    vectors = encode(encoder, numbers, check).astype(np.float64)
    a, b = np.split(rows, 2)
    cosines: FloatArray = np.einsum("ij,ij->i", vectors[a], vectors[b])
    return cosines


def _at_hand(config: TrialConfig) -> str:
    """The model as the folder that holds it."""
    folder = fetch(config.model, config.model_revision)
    return f"{STATIC}{folder}" if config.model.startswith(STATIC) else str(folder)


def _untrained(config: TrialConfig, model: str, data: Data, check: Callable[[], None]) -> Scores:
    """The base model's scores: the same for all trials of a study, so measured once."""
    key = config.model_dump_json(exclude={"training", "mining", "seed", "threads"})
    if key not in UNTRAINED:
        UNTRAINED.clear()
        UNTRAINED[key] = score(
            rank_validation(load_encoder(model, config.max_seq_tokens, data.table.texts), data, check)
        )
    return UNTRAINED[key]
