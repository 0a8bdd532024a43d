"""A trainer process that only waits and reports, for real workers in their own processes.

Python runs a `sitecustomize` that it finds on its path before anything else, in the trainer too.
"""

from __future__ import annotations

from pathlib import Path

SCRIPT = """
import json, os, select, sys, time
if "objectives.trainer" in sys.orig_argv:
    def send(**message):
        os.write(1, json.dumps(message).encode() + b"\\n")
    left = b""
    def receive(wait_s):
        global left
        while b"\\n" not in left:
            if not select.select([0], [], [], wait_s)[0]:
                return None
            if not (more := os.read(0, 65536)):
                os._exit(0)
            left += more
        line, _, left = left.partition(b"\\n")
        return json.loads(line)
    while True:
        job = receive(None)
        send(event="started", planned={steps}00, examples=0, curve=[])
        ended = None
        for step in range(1, {steps} + 1):
            if receive({step_s}) == "stop":
                ended = "interrupted"
                break
            scores = {{"spearman": step / {steps} / 2}}
            send(event="report", step=step * 100, epoch=step / {steps}, scores=scores)
            if receive(None) == "stop":
                ended = "interrupted"
                break
        if ended:
            send(event=ended)
        else:
            send(event="result", scores=scores, stop_reason="completed", stop_epoch=1.0)
"""


def write_stub(folder: Path, *, steps: int, step_s: float) -> dict[str, str]:
    """The environment in which trials have so many reports, so far apart."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SCRIPT.format(steps=steps, step_s=step_s))
    return {"PYTHONPATH": str(folder)}
