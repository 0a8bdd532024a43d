"""The process `python -m objectives.trainer`, through its pipes as a worker sees it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from objectives.config import Job, TrialConfig
from objectives.evaluation import METRICS

Message = dict[str, Any]
CHATTY = """
import os
import objectives.trainer as trainer
quiet = trainer.finetune
def chatty(*arguments):
    print("a library greets")
    os.write(1, b"and so does its C code\\n")
    return quiet(*arguments)
trainer.finetune = chatty
trainer.main()
"""


@dataclass(frozen=True)
class Trainer:
    process: subprocess.Popen[str]

    def send(self, message: str) -> Message:
        """The answer to one line."""
        assert self.process.stdin
        self.process.stdin.write(message + "\n")
        self.process.stdin.flush()
        return self.receive()

    def receive(self) -> Message:
        assert self.process.stdout
        answer: Message = json.loads(self.process.stdout.readline())
        return self.receive() if answer["event"] == "alive" else answer

    def run(self, config: TrialConfig, verdict: str = "go on") -> list[Message]:
        """All messages of one trial; every report is answered with `verdict`."""
        messages = [self.send(Job(config=config).model_dump_json())]
        while messages[-1]["event"] in ("started", "report"):
            messages.append(self.receive() if messages[-1]["event"] == "started" else self.send(json.dumps(verdict)))
        return [
            {name: value for name, value in message.items() if name not in ("train_s", "texts_per_s")}
            for message in messages
            if message["event"] != "started"
        ]


@contextmanager
def trainer(*arguments: str) -> Iterator[Trainer]:
    """A process that ends, and ends well, when its pipes are closed."""
    command = [sys.executable, *(arguments or ("-m", "objectives.trainer"))]
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, text=True) as process:
        yield Trainer(process)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def warm(config: TrialConfig) -> Iterator[Trainer]:
    """One process for the module; it has trained another trial before, and its libraries print."""
    with trainer("-c", CHATTY) as process:
        process.run(changed(config, seed=99, max_seq_tokens=16))
        yield process


def changed(config: TrialConfig, **changes: object) -> TrialConfig:
    return config.model_copy(update=changes)


def test_a_trial_reports_its_evaluations_and_ends_with_its_result(warm: Trainer, config: TrialConfig) -> None:
    *reports, result = warm.run(config)
    assert [(report["event"], report["step"]) for report in reports] == [("report", n) for n in (200, 400, 600, 800)]
    assert all({*METRICS} <= report["scores"].keys() for report in reports)
    assert (result["event"], result["stop_reason"]) == ("result", "completed")
    assert result["scores"]["spearman"] == max(report["scores"]["spearman"] for report in reports)


def test_the_verdict_prune_ends_the_trial(warm: Trainer, config: TrialConfig) -> None:
    report, result = warm.run(config, verdict="prune")
    assert (result["stop_reason"], result["scores"]) == ("pruned", report["scores"])


@pytest.mark.parametrize("wrong", ["incidents", "model"])
def test_missing_data_or_model_are_a_broken_setup(warm: Trainer, config: TrialConfig, wrong: str) -> None:
    incidents = config.incidents.model_copy(update={"path": "no-such-incidents"})
    broken = {"incidents": incidents} if wrong == "incidents" else {"model": "no-such-model"}
    (message,) = warm.run(changed(config, **broken))
    assert message.keys() == {"event", "message"}
    assert message["event"] == "setup"
    assert f"no-such-{wrong}" in message["message"]


def test_parameters_that_diverge_are_infeasible(warm: Trainer, config: TrialConfig) -> None:
    training = config.training.model_copy(update={"learning_rate": 3e38})
    assert warm.run(changed(config, training=training))[-1] == {
        "event": "infeasible",
        "reason": "Diverged",
        "message": "the loss is nan",
    }


def test_the_trace_of_a_bug_quotes_no_data(warm: Trainer) -> None:
    message = warm.send(json.dumps({"model": "the ticket says: my password is swordfish"}))
    assert message["event"] == "bug"
    assert message["trace"].splitlines()[-1] == "ValidationError"
    assert "trainer.py" in message["trace"]
    assert "swordfish" not in message["trace"]


def test_a_process_goes_on_after_a_trial_that_failed(warm: Trainer, config: TrialConfig) -> None:
    warm.send("no JSON at all")
    assert warm.run(config)[-1]["event"] == "result"


def test_a_warm_process_gives_the_bits_of_a_fresh_one(warm: Trainer, config: TrialConfig) -> None:
    with trainer() as fresh:
        assert fresh.run(config) == warm.run(config)


def test_a_library_that_prints_does_not_garble_the_pipe(warm: Trainer, config: TrialConfig) -> None:
    assert [message["event"] for message in warm.run(config, verdict="prune")] == ["report", "result"]


def test_a_process_in_training_ends_when_its_worker_is_gone(config: TrialConfig) -> None:
    with trainer() as orphan:
        assert orphan.send(Job(config=config).model_dump_json())["event"] == "started"
        assert orphan.process.stdin
        orphan.process.stdin.close()
        assert orphan.process.wait(timeout=60) == 0
