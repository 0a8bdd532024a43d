"""What people read in the terminal fits 80 columns and says what it means."""

from dataclasses import replace

import pytest
from rich.console import RenderableType

from hpo.display import comparison_table, make_console, status_line, verdicts
from hpo.status import Comparison, Failure, Snapshot
from objectives.evaluation import METRICS

LONG = "v4-with-hand-set-" + "x" * 47  # as long as a name may be


def comparison(metric: str = "f1", best: float = 0.7, ceiling: float = 1.0, target: float | None = 0.8) -> Comparison:
    baselines = {LONG: 0.497, "hand_set": 0.5}
    return Comparison(metric, 0.737, baselines, best, (best - 0.01, best + 0.01), ceiling, target)


def snapshot(name: str, best: float | None = 0.5, left_s: float | None = 4000.0) -> Snapshot:
    counts = {"complete": 11, "pruned": 17, "failed": 2, "running": 2, "waiting": 0}
    return Snapshot(name, 1000, counts, None if best is None else 3, best, left_s, (), None, None)


def printed(what: RenderableType, capsys: pytest.CaptureFixture[str]) -> list[str]:
    make_console().print(what)
    return capsys.readouterr().out.rstrip("\n").split("\n")


def test_the_table_fits_eighty_columns_and_keeps_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(comparison_table([comparison(metric) for metric in METRICS]), capsys)
    assert max(map(len, lines)) <= 80
    assert all(metric in lines[0] or metric in lines[1] for metric in METRICS)
    assert sum(line.count("0.497") for line in lines) == len(METRICS)
    assert [line.split()[0] for line in lines if line.split() and line.split()[-1] == "0.800"] == ["target"]


def test_names_are_not_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(status_line(snapshot("[red]:smile:")), capsys)[0].startswith("[red]:smile:")


@pytest.mark.parametrize(
    ("best", "left_s", "end"),
    [
        (None, None, "17 pruned, 2 failed"),
        (0.4567, None, "best 0.4567 (trial 3)"),
        (0.5, 4000.0, "1 h 06 min left"),
        (0.5, 3599.6, "1 h 00 min left"),
        (0.5, 62.0, "1 min 02 s left"),
        (0.5, 9.4, "9 s left"),
    ],
)
def test_the_status_line_says_what_is_known(best: float | None, left_s: float | None, end: str) -> None:
    line = status_line(snapshot("demo", best, left_s))
    assert line.startswith("demo: 30/1000 trials, 2 running, 17 pruned, 2 failed")
    assert line.endswith(end)


def test_the_status_line_names_the_best_baseline_and_counts_what_cannot_work_as_pruned() -> None:
    failure = Failure(7, "infeasible", "out of memory", None, None)
    line = status_line(replace(snapshot("demo"), best_baseline="hand_set", failures=(failure,)))
    assert line.startswith(
        "demo: 30/1000 trials, 2 running, 17 pruned (1 infeasible), 2 failed, best 0.5000 (trial 3, "
    )
    assert "hand_set)" in line


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (comparison(best=0.81), "f1: target 0.80 met (0.810)"),
        (comparison(best=0.8), "f1: target 0.80 met (0.800)"),
        (comparison(best=0.7), "f1: target 0.80 not met (0.700)"),
        (
            comparison("spearman_binary", best=0.5, ceiling=0.592),
            "spearman_binary: target 0.80 is out of reach: these labels allow 0.592 at most",
        ),
    ],
    ids=["met", "just met", "not met", "out of reach"],
)
def test_a_target_is_met_or_open_or_out_of_reach(row: Comparison, words: str) -> None:
    assert verdicts([row, comparison(target=None)]) == [words]


def test_a_best_that_falls_behind_a_baseline_is_said_with_its_metrics() -> None:
    """Of Spearman, the first row, the table tells."""
    rows = [
        comparison(metric, best, target=None) for metric, best in (("spearman", 0.4), ("f1", 0.49), ("pr_auc", 0.5))
    ]
    assert verdicts(rows) == ["no trial is as good as the baselines in everything: the best falls behind in f1"]


def test_the_table_shows_the_match_head_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [comparison(metric) for metric in METRICS]
    assert not any("match head" in line for line in printed(comparison_table(rows), capsys))
    lines = printed(comparison_table([replace(row, head=0.912) for row in rows]), capsys)
    assert next(line for line in lines if "match head" in line).split() == ["match", "head", *["0.912"] * len(METRICS)]
    assert max(map(len, lines)) <= 80
