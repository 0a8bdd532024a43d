"""A disk that fills at any write: the checkpoint before counts, what was begun is gone, and a sentence says why."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from hpo.trainer_process import TrainerProcess
from objectives import checkpoints
from objectives.checkpoints import Checkpoint, CheckpointError
from objectives.config import Job, TrialConfig

REPOSITORY = Path(__file__).parents[2]
FULL = OSError(errno.ENOSPC, "No space left on device")
OPERATIONS: list[tuple[Any, str]] = [
    (Path, "mkdir"),
    (Path, "write_text"),
    (Path, "rename"),
    (os, "fsync"),
    (checkpoints, "save_file"),
]
PAGE = 4096
LARGE = 2**16  # pages
SIZES = (0.125, 0.5, 1.5, 2.5)  # of disks, in checkpoints: no room for the first, the second, the third, a later one
PATCH = "import objectives.checkpoints\nobjectives.checkpoints.ROOM = {room}\n"
NAMESPACE = ["unshare", "-rm"]  # with mounts of its own, for any user
Ended = tuple[list[tuple[int, float]], dict[str, Any]]


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint({"number": number}, {"a": torch.full((5_000,), float(number)), "b": torch.arange(9)})


def newest(root: Path) -> int | None:
    found = checkpoints.newest(root, lambda facts: True)
    if found is None:
        return None
    assert torch.equal(found.tensors["a"], torch.full((5_000,), float(found.facts["number"])))
    return int(found.facts["number"])


def fill_at(operation: int, patch: pytest.MonkeyPatch) -> None:
    """The disk is full from that operation on."""
    count = itertools.count(1)

    def filling(name: str, whole: Callable[..., Any]) -> Callable[..., Any]:
        def operate(*arguments: Any, **named: Any) -> Any:
            if next(count) < operation:
                return whole(*arguments, **named)
            if name == "write_text":
                whole(arguments[0], arguments[1][: len(arguments[1]) // 2])
            if name == "save_file":
                whole(*arguments)
                os.truncate(arguments[1], 10_000)
                raise SafetensorError(f"Error while serializing: I/O error: {FULL.strerror} (os error 28)")
            raise FULL

        return operate

    for owner, name in OPERATIONS:
        patch.setattr(owner, name, filling(name, getattr(owner, name)))


def saves_on_a_filling_disk(root: Path, position: int) -> Iterator[int | None]:
    """The newest checkpoint after a save for which the disk was full from its Nth operation on, for each N."""
    for operation in itertools.count(1):
        shutil.rmtree(root, ignore_errors=True)
        for number in (1, 2):
            checkpoints.save(root, number, checkpoint(number))
        with pytest.MonkeyPatch.context() as patch:
            fill_at(operation, patch)
            try:
                checkpoints.save(root, position, checkpoint(position))
                return
            except CheckpointError as error:
                message = str(error)
        assert message.startswith(f"no checkpoint can be written to {root}: ")
        assert message.endswith("; make room there")
        assert "No space left on device" in message
        assert "\n" not in message
        assert not list(root.glob(".*"))
        yield newest(root)
        checkpoints.save(root, 9, checkpoint(9))
        assert newest(root) == 9


def test_disk_that_fills_at_any_operation_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    *before, last = saves_on_a_filling_disk(tmp_path / "root", 3)
    assert len(before) >= 8
    assert set(before) == {2}
    assert last == 3  # renamed already, but not known to be on the disk


def test_disk_that_fills_while_a_checkpoint_is_written_again_leaves_it_or_the_one_before(tmp_path: Path) -> None:
    assert set(saves_on_a_filling_disk(tmp_path / "root", 2)) <= {1, 2}


def run(trainer: TrainerProcess, job: Job) -> Ended:
    """All that was reported, from the first evaluation on, and how the trial ended."""
    reported: list[tuple[int, float]] = []

    def on_start(planned: int, examples: int, curve: list[tuple[int, float]]) -> None:
        reported.extend((step, spearman) for step, spearman in curve)

    def on_report(step: int, epoch: float, scores: dict[str, float]) -> str:
        reported.append((step, scores["spearman"]))
        return "go on"

    end = trainer.run(job, on_start, on_report)
    return reported, {name: value for name, value in end.items() if name not in ("train_s", "texts_per_s")}


class SmallDisks:
    """In a namespace: one trainer, and disks of any size for its trial to fill."""

    def __init__(self, job: Job, disk: Path) -> None:
        self._disk, self._trainer = disk, TrainerProcess()
        self._job = job.model_copy(update={"checkpoint_folder": str(disk / "trial"), "checkpoint_every_s": 0})
        mount(disk, LARGE)
        self._undisturbed, self._process = run(self._trainer, self._job), self._trainer._process
        assert self._undisturbed[1]["event"] == "result"
        self.checkpoint = sum(-(-path.stat().st_size // PAGE) for path in max((disk / "trial").iterdir()).iterdir())
        unmount(disk)

    def fill(self, pages: int) -> int:
        """How many checkpoints a disk of that size held when it was full; says what became of the trial."""
        mount(self._disk, pages)
        end = run(self._trainer, self._job)[1]
        kept = sorted(path.name for path in (self._disk / "trial").glob("*"))
        mount(self._disk, LARGE, "remount")
        equal = run(self._trainer, self._job) == self._undisturbed
        unmount(self._disk)
        same = self._trainer._process is self._process
        told = {"pages": pages, "end": end["event"], "message": end.get("message", ""), "kept": kept}
        sys.stdout.write(json.dumps(told | {"equal": equal, "same trainer": same}) + "\n")
        return len(kept)

    def fill_around(self, kept: int) -> None:
        """Disks with just too little and just enough room for so many checkpoints, page by page."""
        too_small, enough = 1, 4 * self.checkpoint
        while enough - too_small > 1:
            middle = (too_small + enough) // 2
            too_small, enough = (too_small, middle) if self.fill(middle) >= kept else (middle, enough)
        for pages in range(enough - 5, enough + 2):
            self.fill(pages)

    def close(self) -> None:
        self._trainer.close()


def mount(disk: Path, pages: int, *more: str) -> None:
    option = ",".join([*more, f"size={pages * PAGE}"])
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "none", disk], check=True)


def unmount(disk: Path) -> None:
    subprocess.run(["umount", disk], check=True)


def main(orders: str) -> None:
    job, disk, how = json.loads(orders)
    disks = SmallDisks(Job.model_validate_json(json.dumps(job)), Path(disk))
    for size in SIZES:
        disks.fill(int(size * disks.checkpoint))
    if how == "page by page":
        disks.fill_around(1)
        disks.fill_around(2)
    disks.close()


@pytest.fixture
def job(config: TrialConfig) -> Job:
    """Seven batches and two evaluations."""
    training = config.training.model_copy(update={"epochs": 1, "batch_size": 16, "eval_every_examples": 50})
    pairs = config.pairs.model_copy(update={"train": 100})
    return Job(config=config.model_copy(update={"training": training, "pairs": pairs}))


def on_small_disks(job: Job, folder: Path, room: int, how: str = "") -> list[dict[str, Any]]:
    """What became of a trial on each disk; `room` is how many sizes of a checkpoint are to be free beforehand."""
    (folder / "sitecustomize.py").write_text(PATCH.format(room=room))
    (folder / "disk").mkdir()
    orders = json.dumps([job.model_dump(mode="json"), str(folder / "disk"), how])
    command = [*NAMESPACE, sys.executable, "-m", "tests.training.test_disk", orders]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def check_disks(found: list[dict[str, Any]], reason: str) -> None:
    """A sentence each time, nothing partial, and the bits of an undisturbed trial from the trainer that said it."""
    for one in found:
        assert one["end"] == "setup"
        assert one["message"].startswith("no checkpoint can be written to ")
        assert reason in one["message"]
        assert "\n" not in one["message"]
        assert not [name for name in one["kept"] if not name.isdigit()]
        assert one["equal"]
        assert one["same trainer"]


def test_trial_whose_disk_filled_ends_with_the_bits_of_one_whose_did_not(job: Job, tmp_path: Path) -> None:
    found = on_small_disks(job, tmp_path, room=0)
    check_disks(found, "No space left on device")
    assert [len(one["kept"]) for one in found] == [0, 1, 2, 2]


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("room", [0, checkpoints.ROOM])
def test_trial_whose_disk_filled_at_any_page_ends_with_the_bits_of_one_whose_did_not(
    job: Job, tmp_path: Path, room: int
) -> None:
    found = on_small_disks(job, tmp_path, room, "page by page")
    full = [one for one in found if one["end"] != "result"]
    check_disks(full, "MiB free" if room else "No space left on device")
    assert all(one["equal"] for one in found)
    assert {len(one["kept"]) for one in full} == {0, 1, 2}
    assert len(full) > 30


if __name__ == "__main__":
    main(sys.argv[1])
