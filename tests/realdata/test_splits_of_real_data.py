"""Splits of real tickets, with near-duplicates planted among them: nothing that is told twice lies on both sides."""

from __future__ import annotations

import csv
import gzip
import random
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from objectives.config import Columns, Incidents, Splits
from objectives.incidents import IncidentTable, IntArray, read_incidents
from objectives.near_duplicates import normalise
from objectives.pairs import split_incidents
from tests.training.test_near_duplicates import edited

Row = dict[str, str]
COPY = "copy of "
TEXT = ("short_description", "description")
LINKED = Columns(id="id", duplicate_of="duplicate_of")
DATED = LINKED.model_copy(update={"opened": "created", "opened_format": "%Y-%m-%d %H:%M:%S %z"})
COLUMNS = {"office_bugs_2.7k": LINKED, "office_bugs_2.7k by date": DATED, "helpdesk_5k": LINKED}
pytestmark = [pytest.mark.realdata, pytest.mark.parametrize("seed", range(3))]


@dataclass(frozen=True)
class Planted:
    """Real tickets and, after them, copies: with small changes, every other one linked to its original, and equal."""

    rows: list[Row]
    retold: dict[str, str]  # those with changes: its original's id, by id
    table: IncidentTable

    def members(self, seed: int) -> dict[str, IntArray]:
        return split_incidents(self.table, Splits(seed=seed))

    def split_of(self, seed: int) -> dict[str, str]:
        """By incident."""
        return {self.table.ids[number]: name for name, numbers in self.members(seed).items() for number in numbers}


@pytest.fixture(scope="module", params=list(COLUMNS))
def planted(request: pytest.FixtureRequest, real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    name: str = request.param
    rows = read_rows(real_data / f"{name.partition(' ')[0]}.csv.gz")
    copies = copies_of(rows)
    path = tmp_path_factory.mktemp("planted") / "incidents.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows([*rows, *copies])
    table = read_incidents(Incidents(path=str(path), columns=COLUMNS[name]))
    retold = {copy["id"]: copy["id"].removeprefix(COPY) for copy in copies[: len(copies) // 2]}
    return Planted([*rows, *copies], retold, table)


def read_rows(path: Path) -> list[Row]:
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        return [{"duplicate_of": "", **row} for row in csv.DictReader(file)]


def copies_of(rows: list[Row]) -> list[Row]:
    """One ticket in a hundred as it is told another time, then one in a hundred in capitals; with any ticket's date."""
    rng = random.Random(0)
    texts = {row["id"]: " ".join(row[name] for name in TEXT).strip() for row in rows}
    words = sorted({word for text in texts.values() for word in text.split()})
    long_enough = [row for row in rows if row["category"] and len(texts[row["id"]].split()) >= 5]
    size = round(len(rows) / 100)
    copies = []
    for number, original in enumerate(rng.sample(long_enough, 2 * size)):
        text, is_retold = texts[original["id"]], number < size
        date = {name: value for name, value in rng.choice(rows).items() if name == "created"}
        ids = {"id": f"{COPY}{original['id']}", "duplicate_of": original["id"] if is_retold and number % 2 else ""}
        told = {"short_description": "", "description": edited(text, words, rng) if is_retold else text.upper()}
        copies.append(original | date | ids | told)
    return copies


def divided(keys: Iterable[tuple[str, Hashable]], split_of: dict[str, str]) -> list[Hashable]:
    """What lies in two splits, of what (incident, key) tells."""
    splits = defaultdict(set)
    for incident, key in keys:
        if incident in split_of:
            splits[key].add(split_of[incident])
    assert splits
    return [key for key, found in splits.items() if len(found) > 1]


def test_every_real_ticket_is_in_one_split_of_the_declared_size(planted: Planted, seed: int) -> None:
    members = planted.members(seed)
    assert sorted(np.concatenate(list(members.values())).tolist()) == list(range(len(planted.table)))
    for name in ("validation", "test"):
        assert len(members[name]) / len(planted.table) == pytest.approx(0.15, abs=0.01)


def test_no_text_of_a_real_ticket_is_in_two_splits(planted: Planted, seed: int) -> None:
    texts = zip(planted.table.ids, map(normalise, planted.table.texts), strict=True)
    assert divided(texts, planted.split_of(seed)) == []


def test_no_cluster_of_linked_real_tickets_is_in_two_splits(planted: Planted, seed: int) -> None:
    clusters = zip(planted.table.ids, planted.table.cluster.tolist(), strict=True)
    assert divided(clusters, planted.split_of(seed)) == []


@pytest.mark.parametrize("planted", ["office_bugs_2.7k", "office_bugs_2.7k by date"], indirect=True)
def test_no_cluster_of_bugs_as_triagers_have_it_is_in_two_splits(planted: Planted, seed: int) -> None:
    told = [(row["id"], row["dup_cluster"]) for row in planted.rows if COPY not in row["id"]]
    assert divided(told, planted.split_of(seed)) == []


def test_planted_near_duplicate_that_is_linked_stays_with_its_original(planted: Planted, seed: int) -> None:
    links = [(row["id"], planted.retold.get(row["id"])) for row in planted.rows if row["duplicate_of"]]
    split_of = planted.split_of(seed)
    together = [split_of[copy] == split_of[original] for copy, original in links if original]
    assert together == [True] * (len(planted.retold) // 2)


def test_planted_near_duplicates_stay_with_their_originals(planted: Planted, seed: int) -> None:
    split_of = planted.split_of(seed)
    together = [split_of[copy] == split_of[original] for copy, original in planted.retold.items()]
    assert len(together) == round(len(planted.rows) / 102)
    assert np.mean(together) >= 0.95


@pytest.mark.parametrize("planted", ["office_bugs_2.7k by date"], indirect=True)
def test_latest_groups_of_real_tickets_are_held_out(planted: Planted, seed: int) -> None:
    assert planted.table.opened is not None
    latest = np.full(planted.table.group.max() + 1, -np.inf)
    np.maximum.at(latest, planted.table.group, planted.table.opened)
    dates = {name: latest[planted.table.group[numbers]] for name, numbers in planted.members(seed).items()}
    assert dates["train"].max() <= dates["validation"].min()
    assert dates["validation"].max() <= dates["test"].min()
    assert dates["train"].min() < dates["test"].min()
