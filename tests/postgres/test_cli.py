"""The command line as people run it: a search from file to model, and every wrong turn with its sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
import yaml
from sqlalchemy import URL

from hpo.best_file import read_best_file
from hpo.cli import app

Ended = subprocess.CompletedProcess[str]
Run = Callable[..., Ended]
Start = Callable[..., subprocess.Popen[str]]
Rows = Callable[[URL], dict[str, list[str]]]
Query = Callable[..., list[tuple[object, ...]]]
BASELINE = "the_recipe_that_this_desk_has_used_ever_since_its_fourth_version"
BY_OTHERS = """
import csv, sys
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
input()
model = SentenceTransformer(sys.argv[1], device="cpu")
with open(sys.argv[2], newline="", encoding="utf-8") as file:
    pairs = list(csv.DictReader(file))
a, b = (model.encode([pair[side] for pair in pairs], normalize_embeddings=True) for side in ("anchor", "other"))
similarities = (a.astype(float) * b.astype(float)).sum(axis=1)
for labels in ("grade", "label"):
    print(spearmanr(similarities, [float(pair[labels]) for pair in pairs]).statistic)
"""


@dataclass(frozen=True)
class Search:
    """A study file, its database, and what three runs of the file after each other left."""

    url: URL
    path: Path
    out: Path
    stopped: Ended  # by Ctrl-C, with a trial in hand
    workers_left: list[psutil.Process]
    states_then: list[tuple[object, ...]]
    finished: Ended
    rows_then: dict[str, list[str]]
    again: Ended


@pytest.fixture(scope="module")
def search(module_database: URL, canary_study: Path, start: Start, hpo: Run, query: Query, rows: Rows) -> Search:
    url, path, out = module_database, canary_study, canary_study.parent / "out"
    path.write_text(path.read_text().replace("    v4:", f"    {BASELINE}:"))
    first = start(url, "-m", "hpo", "run", path, "-o", out)
    states = "SELECT number, state FROM trials ORDER BY number"
    wait_until(first, lambda: (0, "RUNNING") in query(url, states) and "trial 0 started" in logs(out))
    workers = psutil.Process(first.pid).children()
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does
    stopped = subprocess.CompletedProcess("", first.wait(), first.communicate()[0])
    return Search(
        url=url,
        path=path,
        out=out,
        stopped=stopped,
        workers_left=[worker for worker in workers if worker.is_running()],
        states_then=query(url, states),
        finished=hpo(url, "run", path, "--workers", "1", "-o", out),
        rows_then=rows(url),
        again=hpo(url, "run", path, "-o", out),
    )


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def logs(out: Path) -> str:
    return "".join(path.read_text() for path in out.glob("logs/*.log"))


def test_ctrl_c_leaves_no_worker_and_no_running_trial(search: Search) -> None:
    assert search.stopped.returncode == 75, search.stopped.stdout
    assert search.stopped.stdout.endswith("Run the same command to go on\n")
    assert search.workers_left == []
    assert (0, "WAITING") in search.states_then
    assert "RUNNING" not in [state for _, state in search.states_then]


def test_run_goes_on_after_ctrl_c_and_ends_with_exactly_the_budget(search: Search, query: Query) -> None:
    assert search.finished.returncode == 0, search.finished.stdout
    found = query(search.url, "SELECT number, state FROM trials ORDER BY number")
    assert found == [(0, "COMPLETE"), (1, "COMPLETE"), (2, "COMPLETE")]


def test_run_ends_with_table_verdicts_and_the_next_step(search: Search) -> None:
    lines = search.finished.stdout.splitlines()
    assert [line for line in lines if line.startswith("small: 3/3 trials, 0 running, best 0.")]
    assert [line.split() for line in lines if "roc_auc  " in line] == [
        ["spearman", "spearman_binary", "roc_auc", "pr_auc", "f1"]
    ]
    first, baseline, *rows = [line.split()[0] for line in lines if line.startswith("  ") and line.count(".") >= 5]
    assert [first, *rows] == ["untrained", "best", "95", "to", "ceiling", "target"]
    assert BASELINE.startswith(baseline.rstrip("…"))
    assert [line for line in lines if line.startswith("spearman_binary: target 0.80 is") and "0.59" in line]
    assert lines[-1].startswith("train it:  ")
    assert lines[-1].endswith(f" train {search.out}/best.yaml -o {search.out}/model")


def test_piped_output_has_no_escape_codes_and_a_table_of_80_columns(search: Search) -> None:
    for output in (search.stopped.stdout, search.finished.stdout, search.again.stdout):
        assert "\x1b" not in output
        assert "\r" not in output
    table = search.finished.stdout.partition("3/3 trials")[2].partition("spearman: target")[0].splitlines()[1:]
    assert len(table) > 10
    assert max(map(len, table)) <= 80


def test_running_a_finished_study_says_so_and_changes_no_row(search: Search, rows: Rows) -> None:
    assert search.again.returncode == 0, search.again.stdout
    assert search.again.stdout.startswith("study small is complete: 3 trials recorded\n")
    assert search.again.stdout.endswith(search.finished.stdout.partition("3/3 trials")[2].partition("\n")[2])
    assert rows(search.url) == search.rows_then


def test_status_as_json_is_one_object_that_says_what_is_recorded(search: Search, hpo: Run) -> None:
    ended = hpo(search.url, "status", "small", "--json")
    found = json.loads(ended.stdout)
    best = yaml.safe_load((search.out / "best.yaml").read_text())
    assert (found["study"], found["budget"], found["complete"]) == ("small", 3, 3)
    assert (found["pruned"], found["failed"], found["running"], found["waiting"]) == (0, 0, 0, 0)
    assert found["best_trial"] == best["provenance"]["trial"]
    assert found["best_spearman"] == best["metrics"]["spearman"]["value"]


def test_status_in_words_shows_the_table_of_the_run(search: Search, hpo: Run) -> None:
    line, _, table = hpo(search.url, "status", "small").stdout.partition("\n")
    assert line.startswith("small: 3/3 trials, 0 running, best 0.")
    assert table.rstrip() in search.finished.stdout


def test_export_of_two_writes_two_files_that_read_back(search: Search, hpo: Run, tmp_path: Path) -> None:
    ended = hpo(search.url, "export", "small", "--top", "2", "-o", tmp_path / "found.yaml")
    paths = [tmp_path / "found.yaml", tmp_path / "found-2.yaml"]
    assert (ended.returncode, ended.stdout) == (0, "".join(f"{path}\n" for path in paths))
    (best, job), (second, _) = map(read_best_file, paths)
    assert best.metrics["spearman"].value >= second.metrics["spearman"].value
    assert best.provenance.trial != second.provenance.trial
    assert job.config.incidents.path == str(search.path.with_name("incidents.csv"))
    for path, file in zip(paths, (best, second), strict=True):
        assert yaml.safe_load(path.read_text()) == file.model_dump(mode="json")


def test_trained_model_scores_as_its_file_says_in_the_hands_of_others(
    search: Search, hpo: Run, start: Start, tmp_path: Path
) -> None:
    model, pairs = tmp_path / "model", tmp_path / "pairs.csv"
    others = start(search.url, "-c", BY_OTHERS, model, pairs)  # loads what it needs while the model is trained
    written = hpo(search.url, "pairs", "small", "-o", pairs)
    assert (written.returncode, written.stdout) == (0, f"1000 pairs: {pairs}\n")
    trained = hpo(search.url, "train", search.out / "best.yaml", "-o", model)
    assert trained.returncode == 0, trained.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    scores = others.communicate("\n", timeout=60)[0].splitlines()[-2:]
    said = yaml.safe_load((search.out / "best.yaml").read_text())["metrics"]
    expected = [said[metric]["value"] for metric in ("spearman", "spearman_binary")]
    assert list(map(float, scores)) == pytest.approx(expected, abs=1e-6)


def test_train_leaves_an_existing_folder_as_it_is(search: Search, hpo: Run, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").write_text("mine")
    ended = hpo(search.url, "train", search.out / "best.yaml", "-o", tmp_path / "model")
    assert (ended.returncode, ended.stdout) == (2, f"hpo: {tmp_path}/model exists; give another folder, or remove it\n")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "precious"]
    assert (tmp_path / "model" / "precious").read_text() == "mine"


def commands(group: Any, name: str = "hpo") -> Iterator[tuple[str, str]]:
    """Each command with its help."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command.help or ""


@pytest.mark.parametrize(("name", "text"), list(commands(typer.main.get_command(app))))
def test_help_of_every_command_ends_with_an_example_of_it(name: str, text: str) -> None:
    assert text.splitlines()[-1].startswith(f"Example: {name}")


def test_unknown_study_is_one_line_that_names_those_there(search: Search, start: Start, tmp_path: Path) -> None:
    more = {"worker": [], "status": [], "export": ["-o", tmp_path / "x"], "pairs": ["-o", tmp_path / "x"]}
    started = [start(search.url, "-m", "hpo", command, "smal", *rest) for command, rest in more.items()]
    for process in started:
        assert process.communicate()[0] == "hpo: no study 'smal' in this database; there are: small\n"
        assert process.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_target_above_its_ceiling_is_said_before_the_study_starts(database: URL, study_yaml: Path, hpo: Run) -> None:
    ended = hpo(database, "create", study_yaml)
    assert ended.returncode == 0
    assert ended.stdout.splitlines() == [
        "hpo: spearman_binary: target 0.80 is out of reach: these labels allow 0.592 at most",
        "study small is there; work on it with: hpo worker small",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{duplicate_of: duplicate_of}", "{category: kind}", "{incidents}:1: no column 'kind'; the file has number, "),
        ("budget: {trials: 3}", "budget: {trials: 3}\nbugdet: 3", "{study}:{lines}: unknown key 'bugdet'\n"),
        ("budget: {trials: 3}", "budget: {trials: 3}\nname: large", "{study}:{lines}: found duplicate key"),
        ("name: small", "name: sm\udcffll", "{study}: not UTF-8 (byte 8); save it as UTF-8\n"),
        ("incidents.csv", "nowhere.csv", "{folder}/nowhere.csv: cannot be read (No such file or directory)\n"),
    ],
    ids=["missing column", "unknown key", "duplicate key", "not UTF-8", "no incidents"],
)
def test_bad_input_names_file_and_line_and_creates_nothing(
    database: URL, study_yaml: Path, incidents_csv: Path, hpo: Run, rows: Rows, old: str, new: str, expected: str
) -> None:
    before = rows(database)
    text = study_yaml.read_text().replace(old, new)
    study_yaml.write_text(text, errors="surrogateescape")
    ended = hpo(database, "create", study_yaml)
    names = {"study": study_yaml, "incidents": incidents_csv, "folder": incidents_csv.parent, "lines": text.count("\n")}
    assert ended.returncode == 2, ended.stdout
    assert ended.stdout.startswith("hpo: " + expected.format_map(names))
    assert ended.stdout.count("\n") == 1
    assert rows(database) == before


def test_database_out_of_reach_is_one_line_without_the_password(database: URL, start: Start, study_yaml: Path) -> None:
    refused = URL.create("postgresql", "somebody", "canary", "127.0.0.1", 1, "hpo")
    nonsense = URL.create("mysql", "somebody", "canary", "127.0.0.1", 1, "hpo")
    for process in [start(url, "-m", "hpo", "create", study_yaml) for url in (refused, nonsense)]:
        output = process.communicate()[0]
        assert process.returncode == 78, output
        assert output.count("\n") == 1
        assert "canary" not in output
