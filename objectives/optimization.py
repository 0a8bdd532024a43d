"""One optimizer step after another, none of which may leave the finite numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import cos_sim
from transformers import get_scheduler

from objectives.config import Memory, Training
from objectives.device import device, resolved, train_in_bfloat16
from objectives.incidents import IntArray
from objectives.models import Encoder
from objectives.nearness import Barred
from objectives.progress import Diverged

NO_LABELS = torch.empty(0)


class Optimization:
    """Model, loss, optimizer and learning-rate schedule of one run of `steps` steps."""

    def __init__(
        self, encoder: Encoder, config: Training, steps: int, memory: Memory, is_alike: Barred | None = None
    ) -> None:
        self.encoder = encoder
        self._max_grad_norm = config.max_grad_norm
        if resolved(config.precision, encoder.model) == "bfloat16":
            train_in_bfloat16(encoder.model)
        self._similarity = Similarity(is_alike)
        self._loss = _loss(encoder, config, memory, self._similarity)
        self._parameters = [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        warmup_steps = math.ceil(config.warmup_ratio * steps)
        self.scheduler = get_scheduler(
            config.schedule, self.optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps
        )

    def step(self, ends: IntArray) -> None:
        """On text numbers, shape (batch, 2 + hard negatives). Raises Diverged, the weights as they were before."""
        self.encoder.model.train()
        self._similarity.expect(ends)
        loss = self._loss([self.encoder.collate(numbers) for numbers in ends.T], NO_LABELS)
        if not torch.isfinite(loss):
            raise Diverged(f"the loss is {loss.item()}")
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        if not torch.isfinite(norm):
            raise Diverged(f"the gradients' norm is {norm.item()}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()


class Similarity:
    """Cosines between a batch's anchors and its texts; minus infinity where a text is no negative of an anchor."""

    def __init__(self, is_alike: Barred | None) -> None:
        self._is_alike, self._barred, self._row = is_alike, torch.empty(0), 0

    def expect(self, ends: IntArray) -> None:
        if self._is_alike is not None:
            barred = self._is_alike(ends[:, :1], ends[:, 1:].T.ravel())
            np.fill_diagonal(barred[:, : len(ends)], False)  # an anchor's own positive
            self._barred, self._row = torch.from_numpy(barred).to(device()), 0

    def __call__(self, anchors: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """The rows of a batch in order, whole or in micro-batches."""
        cosines = cos_sim(anchors, texts)
        if self._is_alike is None:
            return cosines
        self._row += len(anchors)
        return cosines.masked_fill(self._barred[self._row - len(anchors) : self._row], -torch.inf)


def _loss(encoder: Encoder, config: Training, memory: Memory, similarity: Similarity) -> torch.nn.Module:
    """In micro-batches the vectors are computed twice, and every pair still sees the whole batch as negatives."""
    if memory.gradient_checkpointing:
        first: Any = encoder.model[0]
        model = first.auto_model
        # Renamed in transformers 5; the old name goes with 6.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if memory.micro_batch is None:
        return MultipleNegativesRankingLoss(encoder.model, scale=config.scale, similarity_fct=similarity)
    return CachedMultipleNegativesRankingLoss(
        encoder.model,
        scale=config.scale,
        similarity_fct=similarity,
        mini_batch_size=memory.micro_batch,
        show_progress_bar=False,
    )
