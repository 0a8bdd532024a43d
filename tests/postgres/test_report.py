"""`hpo report` of studies in every state, of plans, and of scores by hand: sensible words, whatever there is."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from sqlalchemy import URL

from hpo.config import StudyFile
from hpo.confirmed import CONFIRMED, Confirmation, Runs
from hpo.feasibility import feasibility
from hpo.plan import PHASE
from hpo.report import Report, report_of
from hpo.report_plan import phases_of, report_of_plan
from hpo.report_sections import sections
from hpo.report_text import markdown, print_sections
from hpo.status import compare, take_snapshot
from hpo.study import create_study, open_study
from storage.native import PostgresStorage
from tests.recorded import CURVES, make_recorded_study, recorded_trial

Run = Callable[..., CompletedProcess[str]]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recorded(module_database: URL) -> tuple[optuna.Study, StudyFile]:
    return make_recorded_study(module_database)


def empty_study(url: URL, name: str = "empty", trials: int = 5) -> tuple[optuna.Study, StudyFile]:
    content = {
        "name": name,
        "incidents": {"path": "/none.csv", "sha256": "0" * 64},
        "budget": {"trials": trials},
        "space": {"parameters": {"learning_rate": {"type": "float", "low": 1e-5, "high": 0.3, "log": True}}},
    }
    study = create_study(url, PostgresStorage(url), StudyFile.model_validate(content), dataset=b"none: nobody trains")
    return open_study(study._storage, name)


def text_of(report: Report, width: int = 80) -> str:
    out = io.StringIO()
    print_sections(Console(file=out, width=width, markup=False, highlight=False), report.name, sections(report))
    return out.getvalue()


def test_an_empty_study_is_told_that_nothing_has_ended(database: URL) -> None:
    said = text_of(report_of(*empty_study(database)))
    assert "0 of 5 trials have ended (none yet)" in said
    assert "Nothing has ended yet" in said


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (TrialState.RUNNING, "1 running"),
        (TrialState.FAIL, "No trial was completed"),
        (TrialState.PRUNED, "pruner.startup_trials"),
    ],
)
def test_a_study_without_a_completed_trial_says_what_became_of_them(
    database: URL, state: TrialState, words: str
) -> None:
    study, file = empty_study(database)
    trial = optuna.trial.create_trial(state=state, value=None, intermediate_values={1: 0.1})
    study._storage.create_new_trial(study._study_id, trial)
    assert words in " ".join(text_of(report_of(study, file)).split())


def test_the_report_and_the_status_tell_the_same_numbers(recorded: tuple[optuna.Study, StudyFile]) -> None:
    rows = feasibility(recorded[0].get_trials(), recorded[1])
    table = compare(take_snapshot(*recorded), recorded[1])
    assert [(row.metric, row.best, row.ceiling, row.target) for row in rows] == [
        (row.metric, row.best, row.ceiling, row.target) for row in table
    ]


@pytest.mark.parametrize("width", [80, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(
    recorded: tuple[optuna.Study, StudyFile], width: int
) -> None:
    report = report_of(*recorded)
    said = text_of(report, width)
    assert max(map(len, said.splitlines())) <= width
    for row in report.metrics:
        line = next(line for line in said.splitlines() if line.startswith(f"{row.metric} "))  # of the first table
        assert f"{row.best:.3f}" in line
        assert row.gap is None or not row.gap or f"{row.gap:.3f}" in line


def test_markdown_tables_have_as_many_cells_in_each_line(recorded: tuple[optuna.Study, StudyFile]) -> None:
    written = markdown("Report", sections(report_of(*recorded)))
    for table in (part.splitlines() for part in written.split("\n\n") if part.startswith("|")):
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_odds_of_an_open_target_stand_beside_their_class(recorded: tuple[optuna.Study, StudyFile]) -> None:
    said = text_of(report_of(*recorded))
    assert "very low chance (under 1 %)" in said
    assert "80 % range" in said


def plan_of(url: URL, phases: dict[str, list[dict[str, Any]]], budgets: dict[str, int]) -> PostgresStorage:
    """Studies as `hpo run` of a plan makes them, with recorded trials."""
    storage = PostgresStorage(url)
    for number, (name, rows) in enumerate(phases.items()):
        study, _ = empty_study(url, f"desk-{name}", budgets[name])
        storage.set_study_system_attr(study._study_id, PHASE, f"{number} fingerprint centre 3")
        for row in rows:
            storage.create_new_trial(study._study_id, _whole(recorded_trial(row)))
    return storage


def _whole(trial: FrozenTrial) -> FrozenTrial:
    trial.params, trial.distributions = {}, {}
    return trial


def test_a_plan_is_told_phase_by_phase_and_whether_earlier_ranges_held(database: URL) -> None:
    storage = plan_of(database, {"training": CURVES[:20], "data": CURVES[20:]}, {"training": 20, "data": 20})
    report = report_of_plan("desk", phases_of(storage, "desk"))
    assert [phase.name for phase in report.phases] == ["training", "data"]
    spearman = [one for one in report.projections if one.metric == "spearman"]
    [told] = [one for one in spearman if one.told_after == "training" and one.at_end_of == "data"]
    best = max(row["metrics"]["spearman"] for row in CURVES if row["number"] not in (4, 8, 9))
    assert told.came == pytest.approx(best)
    assert told.has_held == (told.range[0] <= best <= told.range[1])
    assert "held" in text_of(report)


def test_a_plan_that_still_runs_tells_what_is_to_come_after_this_phase_and_after_all(database: URL) -> None:
    storage = plan_of(database, {"training": CURVES[:20]}, {"training": 40})
    report = report_of_plan("desk", phases_of(storage, "desk"), [("data", 40), ("advanced", 40)])
    told = [one for one in report.projections if one.metric == "spearman"]
    assert [(one.told_after, one.at_end_of, one.came) for one in told] == [
        ("training, so far", "training", None),
        ("training, so far", "advanced", None),
    ]
    assert told[0].range[1] <= told[1].range[1]


def test_every_form_of_the_command_tells_of_one_study(module_database: URL, hpo: Run, tmp_path: Path) -> None:
    if "servicedesk" not in optuna.get_all_study_names(PostgresStorage(module_database)):
        make_recorded_study(module_database)
    printed = hpo(module_database, "report", "servicedesk", "--json")
    found = json.loads(printed.stdout)
    assert found["metrics"][0]["metric"] == "spearman"
    assert found["metrics"][0]["state"] == "open"
    for suffix, sign in ((".html", "<!doctype html>"), (".md", "# Report of servicedesk")):
        path = tmp_path / f"report{suffix}"
        assert hpo(module_database, "report", "servicedesk", "-o", path).returncode == 0
        assert path.read_text().startswith(sign)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nobody"], "no study and no plan 'nobody'"),
        (["nobody", "-o", "report.pdf"], ".html or .md"),
        (["none.yaml"], "cannot be read"),
    ],
)
def test_what_cannot_be_reported_on_ends_with_a_sentence(
    module_database: URL, hpo: Run, arguments: list[str], words: str
) -> None:
    done = hpo(module_database, "report", *arguments)
    assert done.returncode == 2
    assert words in done.stdout
    assert "Traceback" not in done.stdout


def test_scores_by_hand_need_no_database(tmp_path: Path, hpo: Run, module_database: URL) -> None:
    nowhere = module_database.set(database="not_there")
    done = hpo(nowhere, "report", REPOSITORY / "examples" / "v4.yaml")
    said = " ".join(done.stdout.split())
    assert done.returncode == 0
    for part in ("impossible with these labels", "0.592", "84 %", "would allow 0.87", "epoch 0.93 of 8"):
        assert part in said


def test_the_share_of_positives_follows_from_auc_and_spearman(tmp_path: Path, hpo: Run, module_database: URL) -> None:
    (tmp_path / "ours.yaml").write_text("name: ours\nscores: {roc_auc: 0.920, spearman: 0.497}\n")
    done = hpo(module_database, "report", tmp_path / "ours.yaml")
    assert "13.5 % of the pairs positive" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("scores: {roc_auc: 0.9}", "give positive_share"),
        ("scores: {roc_auc: 0.6, spearman: 0.9}", "does not go with"),
        ("scores: {auc: 0.6, spearman: 0.9}", "auc"),
        ("scores: {spearman: 2.0}\npositive_share: 0.1", "spearman"),
        ("scores: {spearman: 0.3}\npositive_share: 1.5", "positive_share"),
        ("scores: {spearman: 0.65}\npositive_share: 0.135", "0.592 at most"),
        ("scores: {spearman: 0.3}\npositive_share: 0.1\nstopped: {epoch: 2, of_epochs: 1}", "beyond of_epochs"),
    ],
)
def test_wrong_scores_by_hand_end_with_a_sentence(
    tmp_path: Path, hpo: Run, module_database: URL, content: str, words: str
) -> None:
    (tmp_path / "ours.yaml").write_text(f"name: ours\n{content}\n")
    done = hpo(module_database, "report", tmp_path / "ours.yaml")
    assert done.returncode == 2
    assert words in done.stdout
    assert "Traceback" not in done.stdout


def test_a_confirmation_is_no_search_to_be_given_odds(database: URL) -> None:
    study, file = empty_study(database)
    confirming = file.model_copy(update={"name": "empty/confirm"})
    report = report_of(study, confirming)
    assert "hpo report empty" in text_of(report)
    assert (report.metrics, report.steps, report.findings) == ((), (), ())


def test_what_is_exported_is_named_where_it_is_not_the_best_on_one_seed(database: URL) -> None:
    study, file = make_recorded_study(database, "confirmed")
    best = report_of(study, file)
    runs = Runs(trial=20, seeds=5, mean={"spearman": 0.6}, spread={"spearman": 0.01})
    found = Confirmation(
        study="confirmed/confirm",
        runs=(runs,),
        winner=20,
        against="v4",
        gain=(0.0, -0.1, 0.1),
        gain_on_test=(0.0, -0.1, 0.1),
        verdict="indistinguishable",
        why_stopped="all had run",
    )
    study._storage.set_study_system_attr(study._study_id, CONFIRMED, found.model_dump(mode="json"))
    report = report_of(study, file)
    assert "exported is trial 20" in " ".join(report.summary)
    assert report.parameters != best.parameters
