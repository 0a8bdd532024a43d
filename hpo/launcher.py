"""Workers on this box, each in its place: started, started again when they were cut short, stopped together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL

from hpo.devices import VISIBLE, device_label, hold_gpu, visible_gpus
from hpo.errors import HpoError, InputError, Interrupted, SetupError
from hpo.notify import webhook_url

REFRESH_S = 0.5
STOP_TIMEOUT_S = 15.0
CPU_WORKERS = 2
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0  # before one that was cut short is started again: doubled each time
STEADY_S = 60.0  # whoever lived so long begins with the first delay
MAX_FALLS = 10  # in a row, none of them steady
FOR_GOOD = (0, HpoError.exit_code, InputError.exit_code, SetupError.exit_code)  # another start would end alike


@dataclass(frozen=True)
class Slot:
    """A place for one worker; `gpu` as CUDA_VISIBLE_DEVICES has it, None: the CPU."""

    name: str
    gpu: str | None


@dataclass
class Agent:
    """A worker in its slot, one process after another."""

    slot: Slot
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0  # when to start, by time.monotonic()
    falls: int = 0  # in a row
    code: int | None = None  # once it has ended for good


def default_workers() -> int:
    """One per GPU; two on a box without."""
    return len(visible_gpus()) or CPU_WORKERS


def slots_on(gpus: Sequence[str], workers: int) -> list[Slot]:
    """`workers` of them, spread over the GPUs, or on the CPU."""
    slots = []
    for number in range(workers):
        gpu = gpus[number % len(gpus)] if gpus else None
        place = number // len(gpus) if gpus else number
        label = "cpu" if gpu is None else device_label(gpu)
        slots.append(Slot(f"{label}.{place + 1}" if place else label, gpu))
    return slots


def run_workers(name: str, url: URL, workers: int, logs: Path, refresh: Callable[[], None]) -> None:
    """One for each GPU, or as many as asked for; see supervise()."""
    supervise(name, url, slots_on(visible_gpus(), workers), logs, refresh)


def supervise(
    name: str,
    url: URL,
    slots: Sequence[Slot],
    logs: Path,
    refresh: Callable[[], None],
    options: Sequence[str] = (),
) -> None:
    """Returns when the study is finished or the box drained; `refresh` is called while the workers run.

    Raises Interrupted after Ctrl-C or SIGTERM, SetupError or HpoError when every worker is gone with work left,
    InputError for a GPU that works for another study.
    """
    webhook_url()  # a wrong one is refused here, and not in each worker's log
    for gpu in {slot.gpu for slot in slots if slot.gpu is not None}:
        hold_gpu(gpu, name, share="--share-gpu" in options).close()
    agents = [Agent(slot, logs / f"worker-{number}.log") for number, slot in enumerate(slots, 1)]
    launch = f"{socket.gethostname()}:{os.getpid()}:{time.time():.0f}"
    signals: list[int] = []
    before = {number: signal.signal(number, lambda came, _: signals.append(came)) for number in STOP_SIGNALS}
    try:
        while not signals and any(agent.code is None for agent in agents):
            for agent in agents:
                if any(other.code == 0 for other in agents):
                    agent.due = 0.0  # nothing is left to do, and it will find so
                _tend(agent, lambda agent: _start(agent, name, url, launch, options))
            refresh()
            _wait_for_one(agents)
        if signals:
            _say("stopping: the workers give their trials back")
            _terminate(agents)  # before a look, which may take a while
            refresh()
    finally:  # notes instead of exceptions: those could fall between the start of a worker and its record here
        _stop(agents)
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals:
        raise Interrupted("stopped; trials in hand are given back. Run the same command to go on")
    refresh()
    _explain(agents, logs)


def _tend(agent: Agent, start: Callable[[Agent], subprocess.Popen[bytes]]) -> None:
    """Takes note of a worker that has ended, and starts the one that is due."""
    now = time.monotonic()
    if agent.process is not None and (code := agent.process.poll()) is not None:
        agent.process = None
        agent.falls = 1 if now - agent.started > STEADY_S else agent.falls + 1
        if code in FOR_GOOD or agent.falls > MAX_FALLS:
            agent.code = code
            if code != 0:
                _say(f"worker on {agent.slot.name} ended with code {code}, for good: {_last_line(agent.log)}")
        else:
            delay_s = min(FIRST_DELAY_S * 2 ** (agent.falls - 1), LONGEST_DELAY_S)
            agent.due = now + delay_s
            words = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            _say(f"worker on {agent.slot.name} {words}; again in {delay_s:.0f} s")
    if agent.process is None and agent.code is None and now >= agent.due:
        agent.process, agent.started = start(agent), now


def _start(agent: Agent, name: str, url: URL, launch: str, options: Sequence[str]) -> subprocess.Popen[bytes]:
    # The URL goes by the environment, which only this user can read; arguments are open to everybody on the box.
    # As it was given: a password that came from a file stays there.
    environment = os.environ | {
        "HPO_STORAGE": os.environ.get("HPO_STORAGE") or url.render_as_string(hide_password=False),
        "HPO_SLOT": agent.slot.name,
        "HPO_LAUNCH": launch,
    }
    if agent.slot.gpu is not None:  # counted as NVML and nvidia-smi do
        environment |= {VISIBLE: agent.slot.gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    with agent.log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "hpo", "worker", *options, "--", name],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C comes to this process, which tells the workers
        )


def _wait_for_one(agents: list[Agent]) -> None:
    running = [agent.process for agent in agents if agent.process is not None]
    if running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            running[0].wait(REFRESH_S)
    elif any(agent.code is None for agent in agents):
        time.sleep(REFRESH_S)


def _stop(agents: list[Agent]) -> None:
    """One that does not go in time is killed."""
    processes = _terminate(agents)
    give_up = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        try:
            process.wait(max(give_up - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _terminate(agents: list[Agent]) -> list[subprocess.Popen[bytes]]:
    """Workers give their trials back on SIGTERM; a second one changes nothing."""
    processes = [agent.process for agent in agents if agent.process is not None]
    for process in processes:
        process.terminate()
    return processes


def _explain(agents: list[Agent], logs: Path) -> None:
    codes = [agent.code for agent in agents if agent.code is not None]
    if 0 in codes:
        return  # a worker ends with 0 only when the study is finished or its box is drained
    last_words = _last_line(agents[codes.index(max(codes))].log)
    if SetupError.exit_code in codes:
        raise SetupError(last_words)
    if set(codes) == {InputError.exit_code}:
        raise InputError(last_words)
    raise HpoError(f"all workers are gone (exit codes {', '.join(map(str, codes))}): {last_words}. Logs: {logs}")


def _say(words: str) -> None:
    print(f"hpo: {words}", file=sys.stderr)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1].removeprefix("hpo: ") if lines else "no word in the log"
