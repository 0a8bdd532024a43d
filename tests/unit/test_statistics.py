"""What people are told of an export is what it holds, and fits into a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpo.check_data import check_data
from objectives.config import Columns, Incidents, Pairs, TrialConfig
from objectives.demo_incidents import write_demo_incidents
from objectives.reading import DataError
from objectives.statistics import statistics

HEADER = "number,short_description,description,category,subcategory,duplicate_of\n"


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A hundred incidents of two categories, in pairs of equal text; four linked pairs, one of them across."""
    rows = [f"{n},word {n // 2},b c,{'even' if n % 4 < 2 else 'odd'},s{n % 4},\n" for n in range(100)]
    links = {1: 0, 3: 2, 5: 4, 7: 4}  # 4 is even, 7 is odd
    rows = [row.replace(",\n", f",{links[n]}\n") if n in links else row for n, row in enumerate(rows)]
    path = tmp_path / "planted.csv"
    path.write_text(HEADER + "".join(rows) + "100,no category,,,,\n")
    return path


def test_statistics_are_those_of_the_file(planted: Path) -> None:
    incidents = Incidents(path=str(planted), columns=Columns(duplicate_of="duplicate_of"))
    found = statistics(TrialConfig(incidents=incidents, pairs=Pairs(held_out=100), model="none"))
    assert (found.rows, found.incidents, found.categories) == (101, 100, {"even": 50, "odd": 50})
    assert (found.subcategories, found.small_subcategories) == (4, 0)
    assert (found.equal_texts, found.duplicates) == (100, 7)
    assert found.agreement == {"category": 0.75, "subcategory": 0.0}
    assert set(found.words.values()) == {4}
    assert sum(found.splits.values()) == 100
    assert set(found.held_out_grades) <= {0.0, 0.25, 0.5, 1.0}


def test_what_is_printed_fits_into_eighty_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_demo_incidents(tmp_path / "incidents.csv", 2_000, seed=0)
    check_data(str(tmp_path / "incidents.csv"), "servicenow", None, as_json=False)
    printed = capsys.readouterr().out
    assert printed.startswith("2,000 incidents of 2,000 rows; 0 lack text or category\n")
    assert "linked duplicates agree in category" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_json_holds_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_demo_incidents(tmp_path / "incidents.csv", 1_000, seed=0)
    check_data(str(tmp_path / "incidents.csv"), None, None, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["incidents"]) == (1000, 1000)


def test_export_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "incidents.csv").write_text("a,b\n1\n")
    with pytest.raises(DataError, match="csv:1: no column"):
        check_data(str(tmp_path / "incidents.csv"), None, None, as_json=False)
