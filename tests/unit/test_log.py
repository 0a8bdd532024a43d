"""A worker's log: one line for each event, for people or for programs."""

from __future__ import annotations

import json
import logging

import pytest

from hpo.errors import SetupError
from hpo.log import DEFECT, JsonLines, LogFormat, in_log, trial_event


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    caplog.handler.setFormatter(JsonLines())
    return caplog


def test_event_of_a_trial_is_one_json_object_with_number_state_value_and_seconds(
    lines: pytest.LogCaptureFixture,
) -> None:
    trial_event(17, "complete", "early stop at epoch 1.20", value=0.57312, seconds=83.21)
    found = json.loads(lines.text)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "info",
        "message": "trial 17 complete: spearman 0.5731, 83 s (early stop at epoch 1.20)",
        "trial": 17,
        "state": "complete",
        "value": 0.57312,
        "seconds": 83.2,
    }


def test_value_that_is_no_number_becomes_null_and_a_line_break_stays_in_its_line(
    lines: pytest.LogCaptureFixture,
) -> None:
    trial_event(3, "report", "first\nsecond", value=float("nan"))
    (line,) = lines.text.splitlines()
    assert (json.loads(line)["value"], json.loads(line)["seconds"]) == (None, None)


def test_event_without_words_is_its_state_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trial_event(3, "started", "")
    assert caplog.messages == ["trial 3 started"]


def test_error_with_an_exit_code_ends_the_log_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise SetupError("the disk is full")

    assert in_log(LogFormat.text, work) == 78
    assert capsys.readouterr().err == "hpo: the disk is full\n"


def test_defect_ends_with_a_code_that_a_supervisor_starts_again(lines: pytest.LogCaptureFixture) -> None:
    def work() -> int:
        raise ZeroDivisionError

    assert in_log(LogFormat.json, work) == DEFECT
    assert "ZeroDivisionError" in json.loads(lines.text)["trace"]
