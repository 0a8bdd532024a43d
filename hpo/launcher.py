"""Worker processes on this box: as many as asked for, one log each, stopped together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import URL

from hpo.errors import HpoError, Interrupted, SetupError
from hpo.notify import webhook_url

REFRESH_S = 0.5
STOP_TIMEOUT_S = 15.0
CPU_WORKERS = 2
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def default_workers() -> int:
    """One per GPU; two on a box without."""
    return len(_gpus()) or CPU_WORKERS


def run_workers(name: str, url: URL, workers: int, logs: Path, refresh: Callable[[], None]) -> None:
    """Returns when the study is finished; `refresh` is called while the workers run.

    Raises Interrupted after Ctrl-C or SIGTERM, SetupError or HpoError when every worker is gone with work left.
    """
    webhook_url()  # a wrong one is refused here, and not in each worker's log
    processes: list[subprocess.Popen[bytes]] = []
    signals: list[int] = []
    before = {number: signal.signal(number, lambda came, _: signals.append(came)) for number in STOP_SIGNALS}
    try:
        for number in range(1, workers + 1):
            processes.append(_start(name, url, number, logs / f"worker-{number}.log"))
        while any(process.poll() is None for process in processes) and not signals:
            refresh()
            _wait_for_one(processes)
    finally:  # notes instead of exceptions: those could fall between the start of a worker and its record here
        _stop(processes)
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals:
        raise Interrupted("stopped; trials in hand wait in the database. Run the same command to go on")
    refresh()
    _explain([process.returncode for process in processes], logs)


def _start(name: str, url: URL, number: int, log: Path) -> subprocess.Popen[bytes]:
    # The URL goes by the environment, which only this user can read; arguments are open to everybody on the box.
    environment = os.environ | {"HPO_STORAGE": url.render_as_string(hide_password=False)}
    if gpus := _gpus():
        environment["CUDA_VISIBLE_DEVICES"] = gpus[(number - 1) % len(gpus)]
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "hpo", "worker", name],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C comes to this process, which tells the workers
        )


def _gpus() -> list[str]:
    """Device numbers as CUDA counts them. Asking torch would cost seconds and a context on each device."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [device for device in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if device.strip() not in ("", "-1")]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


def _wait_for_one(processes: list[subprocess.Popen[bytes]]) -> None:
    running = [process for process in processes if process.poll() is None]
    if running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            running[0].wait(REFRESH_S)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Workers give their trials back on SIGTERM; one that does not go in time is killed."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _explain(codes: list[int], logs: Path) -> None:
    if 0 in codes:
        return  # a worker ends with 0 only when the study is finished
    last_words = _last_line(logs / f"worker-{codes.index(max(codes)) + 1}.log")
    if SetupError.exit_code in codes:
        raise SetupError(last_words)
    raise HpoError(f"all workers are gone (exit codes {', '.join(map(str, codes))}): {last_words}. Logs: {logs}")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1].removeprefix("hpo: ") if lines else "no word in the log"
