"""Several models as one, models kept whole or not at all, and a student of an ensemble."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from hpo.trainer_process import TrainerProcess
from objectives.config import Job, TrialConfig
from objectives.data import Data, load_data
from objectives.distillation import distil
from objectives.ensemble import GAIN, combine, is_kept, keep_model, load_model, select, similarities, unit_vectors
from objectives.evaluation import FloatArray, rank_pairs, score
from objectives.finetune import Finetuned, finetune
from objectives.models import load_encoder

WEIGHTS = [0.25, 0.75]
POSITIVE = 0.5


def trained(config: TrialConfig, learning_rate: float) -> Finetuned:
    training = config.training.model_copy(update={"learning_rate": learning_rate, "epochs": 1})
    return finetune(config.model_copy(update={"training": training}), lambda progress: "go on")


@pytest.fixture(scope="module")
def data(config: TrialConfig) -> Data:
    return load_data(config)


@pytest.fixture(scope="module")
def first(config: TrialConfig) -> Finetuned:
    return trained(config, 0.01)


@pytest.fixture(scope="module")
def members(config: TrialConfig, first: Finetuned) -> list[SentenceTransformer]:
    return [first.encoder.whole(), trained(config, 0.1).encoder.whole()]


@pytest.fixture(scope="module")
def ensemble(members: list[SentenceTransformer]) -> SentenceTransformer:
    return combine(members, WEIGHTS)


@pytest.fixture(scope="module")
def saved(ensemble: SentenceTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble") / "model"
    ensemble.save(str(folder), create_model_card=False)
    return folder


def test_ensemble_finds_alike_as_its_members_do_in_the_weighted_mean(
    data: Data, members: list[SentenceTransformer], ensemble: SentenceTransformer
) -> None:
    of_each = [similarities(member, data.table.texts, data.validation) for member in members]
    mean = np.average(of_each, axis=0, weights=WEIGHTS)
    assert np.abs(of_each[0] - of_each[1]).max() > 0.1
    np.testing.assert_allclose(similarities(ensemble, data.table.texts, data.validation), mean, atol=1e-6)


def test_saved_ensemble_gives_equal_vectors_of_the_dimensions_that_it_says(
    data: Data, ensemble: SentenceTransformer, saved: Path
) -> None:
    texts, again = data.table.texts[:50], load_model(saved)
    vectors = unit_vectors(again, texts)
    np.testing.assert_array_equal(vectors, unit_vectors(ensemble, texts))
    assert again.get_embedding_dimension() == vectors.shape[1] == 2 * 384


def test_saved_ensemble_holds_no_code_and_no_pickle(saved: Path) -> None:
    assert {path.suffix for path in saved.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_others_load_a_saved_ensemble_when_they_trust_this_package(data: Data, saved: Path) -> None:
    theirs = SentenceTransformer(str(saved), device="cpu", trust_remote_code=True, local_files_only=True)
    texts = data.table.texts[:50]
    np.testing.assert_array_equal(unit_vectors(theirs, texts), unit_vectors(load_model(saved), texts))


def test_single_member_stays_a_plain_model(members: list[SentenceTransformer]) -> None:
    assert combine(members[:1], [1.0]) is members[0]


# Selection


def noisy(grades: FloatArray, *noise: float, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    return np.stack([grades + level * rng.normal(size=len(grades)) for level in noise])


@pytest.fixture(scope="module")
def grades() -> FloatArray:
    return np.random.default_rng(0).choice([0.0, 0.25, 0.5, 1.0], 3_000)


def spearman(found: FloatArray, grades: FloatArray) -> float:
    return score(rank_pairs(found, grades, POSITIVE))["spearman"]


def test_selection_never_ends_below_the_best_member(grades: FloatArray) -> None:
    for seed in range(20):
        levels = np.random.default_rng(seed).uniform(0.05, 3, size=4)
        found = noisy(grades, *levels, seed=seed)
        best = max(spearman(member, grades) for member in found)
        assert spearman(select(found, grades, POSITIVE, {}) @ found, grades) >= best


def test_selection_takes_a_better_member_more_often(grades: FloatArray) -> None:
    found = noisy(grades, 0.9, 0.6, 40.0)
    once, often, never = counts = select(found, grades, POSITIVE, {})
    assert often > once >= 1
    assert never == 0
    assert spearman(counts @ found, grades) > spearman(found[1], grades) + 10 * GAIN


def test_selection_of_equal_members_is_of_one(grades: FloatArray) -> None:
    assert select(np.repeat(noisy(grades, 0.5), 3, axis=0), grades, POSITIVE, {}).tolist() == [1, 0, 0]


def test_selection_reaches_floors_before_it_looks_at_spearman(grades: FloatArray) -> None:
    """One member knows the grades roughly, the other which pairs are positive."""
    found = np.stack([noisy(grades, 0.1)[0], 10.0 * (grades >= POSITIVE) - grades])
    free, bound, beyond = (select(found, grades, POSITIVE, floors) for floors in ({}, {"f1": 1.0}, {"f1": 2.0}))
    assert free.tolist() == beyond.tolist() == [1, 0]
    assert score(rank_pairs(found[0], grades, POSITIVE))["f1"] < 1
    assert score(rank_pairs(bound @ found, grades, POSITIVE))["f1"] == 1


# Kept models


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond a mebibyte: whatever writes a model fails half-way, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_model_that_cannot_be_written_costs_the_copy_alone(
    first: Finetuned, config: TrialConfig, tmp_path: Path, small_files: None
) -> None:
    keep_model(first.save, tmp_path / "models" / "0", config)
    assert list((tmp_path / "models").iterdir()) == []


def test_place_that_is_no_folder_costs_the_copy_alone(first: Finetuned, config: TrialConfig, tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    keep_model(first.save, tmp_path / "models" / "0", config)
    assert not is_kept(tmp_path / "models" / "0", config)


def test_model_is_kept_for_its_own_configuration_wherever_the_incidents_lie(
    first: Finetuned, config: TrialConfig, tmp_path: Path
) -> None:
    keep_model(first.save, tmp_path / "0", config)
    assert is_kept(tmp_path / "0", config)
    moved = config.incidents.model_copy(update={"path": "elsewhere.csv", "dataset": "0" * 64})
    assert is_kept(tmp_path / "0", config.model_copy(update={"incidents": moved}))
    assert not is_kept(tmp_path / "0", config.model_copy(update={"seed": 1}))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "kept"])
def test_spoiled_model_is_not_taken_for_the_kept_one(
    first: Finetuned, config: TrialConfig, tmp_path: Path, name: str
) -> None:
    keep_model(first.save, tmp_path / "0", config)
    content = (tmp_path / "0" / name).read_bytes()
    (tmp_path / "0" / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not is_kept(tmp_path / "0", config)
    (tmp_path / "0" / name).unlink()
    assert not is_kept(tmp_path / "0", config)


@dataclass(frozen=True)
class Ends:
    """How three trials ended that were to leave their models in a folder each."""

    complete: dict[str, Any]
    pruned: dict[str, Any]
    no_better: dict[str, Any]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def ends(kept: Path, config: TrialConfig) -> Iterator[Ends]:
    trainer = TrainerProcess()

    def end(name: str, verdict: str, above: float = -1.0) -> dict[str, Any]:
        job = Job(config=config, keep_in=str(kept / name), keep_above=above)
        return trainer.run(job, lambda *_: None, lambda *_: verdict)

    complete = end("complete", "overtaken")
    yield Ends(complete, end("pruned", "prune"), end("no better", "overtaken", complete["scores"]["spearman"]))
    trainer.close()


def test_only_complete_trials_above_the_bar_leave_their_models(ends: Ends, kept: Path) -> None:
    reasons = [end["stop_reason"] for end in (ends.complete, ends.pruned, ends.no_better)]
    assert reasons == ["overtaken", "pruned", "overtaken"]
    assert [path.name for path in kept.iterdir()] == ["complete"]


def test_kept_model_scores_as_its_trial(ends: Ends, kept: Path, config: TrialConfig, data: Data) -> None:
    assert is_kept(kept / "complete", config)
    found = similarities(load_model(kept / "complete"), data.table.texts, data.validation)
    scores = score(rank_pairs(found, data.validation.grades, data.ladder.positive))
    assert scores == pytest.approx(ends.complete["scores"], abs=1e-6)


# Distillation


@pytest.fixture(scope="module")
def taught(ensemble: SentenceTransformer, config: TrialConfig, data: Data) -> SentenceTransformer:
    return distil(ensemble, config.model, data, {}, config.max_seq_tokens, 0)


def test_student_comes_nearer_to_its_teacher(
    ensemble: SentenceTransformer, taught: SentenceTransformer, config: TrialConfig, data: Data
) -> None:
    base = load_encoder(config.model, config.max_seq_tokens, data.table.texts).whole()
    find = partial(similarities, texts=data.table.texts, pairs=data.validation)
    before, after, wanted = find(base), find(taught), find(ensemble)
    assert np.corrcoef(after, wanted)[0, 1] > np.corrcoef(before, wanted)[0, 1] + 0.1


def rows(model: SentenceTransformer) -> torch.Tensor:
    """A vector for each token."""
    first: Any = model[0]
    weights: torch.Tensor = first.embedding.weight
    return weights


def test_student_has_the_size_of_its_base_and_learns_from_training_texts_alone(
    taught: SentenceTransformer, config: TrialConfig, data: Data
) -> None:
    first: Any = taught[0]
    texts = [data.table.texts[number] for number in data.splits["train"]]
    seen = first.tokenizer.encode_batch(texts, add_special_tokens=False)
    base = rows(load_encoder(config.model, config.max_seq_tokens, texts).whole())
    unseen = np.setdiff1d(np.arange(len(base)), [token for text in seen for token in text.ids])
    assert rows(taught).shape == base.shape
    assert torch.equal(rows(taught)[unseen], base[unseen])
    assert not torch.equal(rows(taught), base)


def test_distillation_is_a_function_of_its_seed(
    ensemble: SentenceTransformer, taught: SentenceTransformer, config: TrialConfig, data: Data
) -> None:
    again, other = (distil(ensemble, config.model, data, {}, config.max_seq_tokens, seed) for seed in (0, 1))
    assert torch.equal(rows(again), rows(taught))
    assert not torch.equal(rows(other), rows(taught))
