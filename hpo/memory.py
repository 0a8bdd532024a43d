"""Running out of memory: in how many steps a trial is tried with less, and how the kernel's part in it is seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from objectives.config import STATIC, Memory, TrialConfig

SMALLEST_MICRO_BATCH = 4
CGROUPS = Path("/sys/fs/cgroup")


def ladder(config: TrialConfig) -> Iterator[Memory]:
    """First the batch at once, then in half as much, and so on; last with gradient checkpointing.

    A static model keeps next to nothing of a batch, so less of it would not help.
    """
    yield Memory()
    if config.model.startswith(STATIC):
        return
    micro_batch = config.training.batch_size // 2
    while micro_batch >= SMALLEST_MICRO_BATCH:
        yield Memory(micro_batch=micro_batch)
        micro_batch //= 2
    yield Memory(micro_batch=SMALLEST_MICRO_BATCH, gradient_checkpointing=True)


def oom_kills() -> int:
    """How many processes of this control group the kernel has killed for want of memory; 0 where it does not say."""
    try:
        own = Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition(":")[2].lstrip("/")
        events = (CGROUPS / own / "memory.events").read_text().split()
        return int(events[events.index("oom_kill") + 1])
    except (OSError, ValueError, IndexError):
        return 0
