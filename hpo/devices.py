"""The GPUs of this box: which there are, who holds them, and how much of them is in use. Loads no torch."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pynvml

from hpo.errors import InputError, SetupError
from storage.embedded import default_home

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Use:
    """Of one GPU, by whomever."""

    name: str
    used_gib: float
    total_gib: float
    busy_percent: int


def visible_gpus() -> list[str]:
    """Numbers as NVML counts them, or ids. Asking torch would cost seconds and a context on each."""
    if VISIBLE in os.environ:
        return [device for text in os.environ[VISIBLE].split(",") if (device := text.strip()) not in ("", "-1")]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def chosen_gpus(given: str | None) -> list[str]:
    """`all`, `0,1` or None for all that there are, if any. Raises InputError."""
    there = visible_gpus()
    if given is None or given == "all":
        if given and not there:
            raise InputError("no GPU was found (/dev/nvidia*, CUDA_VISIBLE_DEVICES); --workers N works on the CPU")
        return there
    asked = [device.strip() for device in given.split(",")]
    if "" in asked or len(set(asked)) < len(asked):
        raise InputError(f"--gpus takes all, or numbers such as 0,1, each once; not {given!r}")
    if VISIBLE in os.environ and (hidden := set(asked) - set(there)):
        raise InputError(f"GPU {', '.join(sorted(hidden))} is not among those of {VISIBLE}={os.environ[VISIBLE]}")
    numbers = [device for device in asked if not device.startswith(("GPU-", "MIG-"))]  # of ids NVIDIA's driver decides
    if unknown := [device for device in numbers if not device.isdigit() or (there and device not in there)]:
        raise InputError(f"GPU {', '.join(unknown)} is not there; GPUs: {', '.join(there) or 'none found'}")
    return asked


def own_device() -> str:
    """Of this process: the first of its GPUs, as its trainer takes that."""
    gpus = visible_gpus()
    return device_label(gpus[0]) if gpus else "cpu"


def device_label(gpu: str) -> str:
    return f"gpu {gpu}" if gpu.isdigit() else f"gpu {gpu.removeprefix('GPU-')[:8]}"


def hold_gpu(gpu: str, study: str, *, share: bool) -> IO[str]:
    """Until the file is closed, or this process is gone, no worker of another study gets the GPU.

    Raises InputError while one has it, unless it is to be shared; SetupError.
    """
    path = default_home() / "gpus" / gpu.replace("/", "_")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        with suppress(BlockingIOError):  # the first one writes down for which study
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            os.write(file.fileno(), study.encode())  # unbuffered: a full disk is heard of here
        fcntl.flock(file, fcntl.LOCK_SH)
    except OSError as error:
        raise SetupError(f"{path} cannot be written ({error.strerror}); HPO_HOME names a folder with room") from None
    file.seek(0)
    if not share and (other := file.read()) != study:
        file.close()
        raise InputError(
            f"{device_label(gpu)} is at work for study {other!r}; take another (--gpus), "
            "or let both have it: --share-gpu"
        )
    return file


def uses(gpus: list[str]) -> dict[str, Use]:
    """Empty where NVIDIA's library is missing, or does not answer."""
    found = {}
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for gpu in gpus:
            with suppress(pynvml.NVMLError):
                found[gpu] = _use(gpu)
    return found


def _use(gpu: str) -> Use:
    by_id = pynvml.nvmlDeviceGetHandleByIndex if gpu.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
    handle = by_id(int(gpu) if gpu.isdigit() else gpu)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    busy = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    return Use(str(pynvml.nvmlDeviceGetName(handle)), memory.used / 2**30, memory.total / 2**30, int(busy))
