"""One optimizer step after another, none of which may leave the finite numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import get_scheduler

from objectives.config import Memory
from objectives.config import Training
from objectives.device import resolved
from objectives.device import train_in_bfloat16
from objectives.incidents import IntArray
from objectives.models import Encoder
from objectives.progress import Diverged

NO_LABELS = torch.empty(0)


class Optimization:
    """Model, loss, optimizer and learning-rate schedule of one run of `steps` steps."""

    def __init__(self, encoder: Encoder, config: Training, steps: int, memory: Memory) -> None:
        self.encoder = encoder
        self._max_grad_norm = config.max_grad_norm
        if resolved(config.precision, encoder.model) == "bfloat16":
            train_in_bfloat16(encoder.model)
        self._loss = _loss(encoder, config, memory)
        self._parameters = [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        warmup_steps = math.ceil(config.warmup_ratio * steps)
        self.scheduler = get_scheduler(
            config.schedule, self.optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps
        )

    def step(self, ends: IntArray) -> None:
        """On pairs of text numbers, shape (batch, 2). Raises Diverged, the weights as they were before."""
        self.encoder.model.train()
        loss = self._loss([self.encoder.collate(ends[:, 0]), self.encoder.collate(ends[:, 1])], NO_LABELS)
        if not torch.isfinite(loss):
            raise Diverged(f"the loss is {loss.item()}")
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        if not torch.isfinite(norm):
            raise Diverged(f"the gradients' norm is {norm.item()}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()


def _loss(encoder: Encoder, config: Training, memory: Memory) -> torch.nn.Module:
    """In micro-batches the vectors are computed twice, and every pair still sees the whole batch as negatives."""
    if memory.gradient_checkpointing:
        first: Any = encoder.model[0]
        model = first.auto_model
        # Renamed in transformers 5; the old name goes with 6.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if memory.micro_batch is None:
        return MultipleNegativesRankingLoss(encoder.model, scale=config.scale)
    return CachedMultipleNegativesRankingLoss(
        encoder.model, scale=config.scale, mini_batch_size=memory.micro_batch, show_progress_bar=False
    )
