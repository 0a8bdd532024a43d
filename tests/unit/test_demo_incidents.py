from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from objectives.demo_incidents import (
    COLUMNS,
    DEFAULT_INCIDENTS,
    REPEATED_WITHIN,
    VOCABULARY,
    Row,
    ServiceDesk,
    demo_incidents,
    write_demo_incidents,
)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return demo_incidents()


def test_same_seed_writes_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    write_demo_incidents(here, 200, seed=3)
    code = (
        "import sys, pathlib; from objectives.demo_incidents import write_demo_incidents as write;"
        "write(pathlib.Path(sys.argv[1]), 200, seed=3)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "LC_ALL": "C"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(there)], check=True, env=environment, cwd=root)
    assert here.read_bytes() == there.read_bytes()


def test_other_seeds_give_other_incidents() -> None:
    first, second = ({row["short_description"] for row in demo_incidents(200, seed)} for seed in (0, 1))
    assert len(first & second) < 40


@pytest.mark.parametrize("incidents", [1, 50, 20_000])
def test_file_has_header_and_one_row_per_incident(tmp_path: Path, incidents: int) -> None:
    path = tmp_path / "incidents.csv"
    write_demo_incidents(path, incidents)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        numbers = [row["number"] for row in reader]
    assert reader.fieldnames == COLUMNS
    assert len(numbers) == len(set(numbers)) == incidents
    assert list(tmp_path.iterdir()) == [path]


def test_duplicates_name_an_incident_opened_at_most_days_before(rows: list[Row]) -> None:
    opened_at: dict[str, datetime] = {}
    for row in rows:
        opened_at[row["number"]] = datetime.fromisoformat(row["opened_at"])
        if row["duplicate_of"]:
            waited = opened_at[row["number"]] - opened_at[row["duplicate_of"]]
            assert row["duplicate_of"] != row["number"]
            assert timedelta(0) <= waited <= REPEATED_WITHIN


def test_few_duplicates_repeat_the_text_literally(rows: list[Row]) -> None:
    text = {row["number"]: (row["short_description"], row["description"]) for row in rows}
    pairs = [(row["number"], row["duplicate_of"]) for row in rows if row["duplicate_of"]]
    literal = sum(text[number] == text[earlier] for number, earlier in pairs)
    assert 0.05 < len(pairs) / len(rows) < 0.08
    assert 0 < literal < len(pairs) / 4


def test_incidents_are_opened_in_order_within_a_year_mostly_in_working_hours(rows: list[Row]) -> None:
    opened_at = [datetime.fromisoformat(row["opened_at"]) for row in rows]
    working = sum(moment.weekday() < 5 and 7 <= moment.hour < 18 for moment in opened_at)
    assert opened_at == sorted(opened_at)
    assert timedelta(days=350) < opened_at[-1] - opened_at[0] < timedelta(days=366)
    assert 0.8 < working / len(rows) < 1


def test_every_incident_is_labelled_and_has_a_short_description(rows: list[Row]) -> None:
    filled = ("number", "short_description", "category", "subcategory", "assignment_group", "close_notes")
    assert all(row[column] for row in rows for column in filled)
    assert {row["cmdb_ci"] == "" for row in rows} == {row["description"] == "" for row in rows} == {True, False}


def test_subcategories_are_uneven_and_all_present(rows: list[Row]) -> None:
    counts = Counter((row["category"], row["subcategory"]) for row in rows)
    assert len(rows) == DEFAULT_INCIDENTS
    assert len({category for category, _ in counts}) == 7
    assert len(counts) == 28
    assert max(counts.values()) > 5 * min(counts.values()) > 100


def test_some_incidents_are_filed_under_a_sibling() -> None:
    desk = ServiceDesk(seed=0)
    cases = [desk.new_case() for _ in range(2000)]
    wrong = [desk.report(case)["subcategory"] != case.problem.subcategory for case in cases]
    assert 0.02 < sum(wrong) / len(wrong) < 0.08


def test_vocabulary_leaves_no_unknown_name_in_any_text() -> None:
    desk = ServiceDesk(seed=0)
    own = {"problem", *desk.problems[0].words}
    names = set(re.findall(r"\$(\w+)", VOCABULARY.read_text(encoding="utf-8")))
    assert names - own == {"name"}  # the comment that explains it
    assert not any("$" in value or "|" in value for row in demo_incidents(500) for value in row.values())


def test_writing_replaces_an_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "incidents.csv"
    path.write_text("earlier", encoding="utf-8")
    write_demo_incidents(path, 1)
    assert path.read_text(encoding="utf-8").startswith(",".join(COLUMNS))
