"""Labels as a study declares them: what makes two incidents near, which classes are too small, who shares a parent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from objectives.config import Columns, Incidents, Labels, Pairs, TrialConfig
from objectives.data import load_data
from objectives.grades import grade, make_ladder, may_be_alike, without_small_classes
from objectives.incidents import IncidentTable, read_incidents
from tests.unit.test_pairs import make_table

HEADER = "number,short_description,description,category,subcategory,team,parent,link\n"
COLUMNS = Columns(assignment_group="team", parent="parent", duplicate_of="link")


def read(path: Path, *rows: str) -> IncidentTable:
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return read_incidents(Incidents(path=str(path), columns=COLUMNS))


def test_one_assignment_group_within_a_subcategory_is_near(tmp_path: Path) -> None:
    rows = ("1,a,,x,y,night,,", "2,b,,x,y,night,,", "3,c,,x,y,day,,", "4,d,,x,z,night,,", "5,e,,x,y,,,", "6,f,,x,y,,,")
    table = read(tmp_path / "incidents.csv", *rows)
    ladder = make_ladder(Labels(), Columns(assignment_group="team"))
    grades = grade(table, ladder, np.zeros(5, dtype=np.int64), np.arange(1, 6))
    assert grades.tolist() == [0.75, 0.5, 0.25, 0.5, 0.5]
    assert grade(table, ladder, np.array([4]), np.array([5])).tolist() == [0.5]  # two unknown groups are not one


def test_children_of_one_parent_and_duplicates_of_one_incident_are_duplicates(tmp_path: Path) -> None:
    rows = ("1,a,,x,y,,,", "2,b,,x,y,,1,", "3,c,,x,y,,1,", "4,d,,x,y,,gone,", "5,e,,x,y,,gone,", "6,f,,x,y,,,gone",
            "7,g,,x,y,,,")  # fmt: skip
    cluster = read(tmp_path / "incidents.csv", *rows).cluster.tolist()
    assert cluster[0] == cluster[1] == cluster[2]
    assert cluster[3] == cluster[4] == cluster[5]
    assert len({cluster[0], cluster[3], cluster[6]}) == 3


def test_texts_that_share_words_within_a_subcategory_are_near_where_declared(tmp_path: Path) -> None:
    rows = ("1,mail is down today,,x,y,,,", "2,Mail is down again,,x,y,,,", "3,printer jam,,x,y,,,",
            "4,mail is down now,,x,z,,,")  # fmt: skip
    table = read(tmp_path / "incidents.csv", *rows)
    anchors, others = np.zeros(3, dtype=np.int64), np.arange(1, 4)
    declared = make_ladder(Labels(near_text=0.6), Columns())  # three words of five in common
    assert grade(table, declared, anchors, others).tolist() == [0.75, 0.5, 0.25]
    assert grade(table, make_ladder(Labels(near_text=0.61), Columns()), anchors, others).tolist() == [0.5, 0.5, 0.25]
    assert "near" not in make_ladder(Labels(), Columns()).grades


def test_pairs_near_in_text_are_among_the_held_out_ones(incidents_csv: Path) -> None:
    config = TrialConfig(
        incidents=Incidents(path=str(incidents_csv)),
        labels=Labels(near_text=0.1),
        pairs=Pairs(held_out=500, positive_share=0.4),
        model="none",
    )
    assert np.sum(load_data(config).validation.grades == 0.75) > 20


SIZES = {(0, 0): 20, (0, 1): 3, (0, 2): 2, (1, 3): 10, (1, 4): 1, (2, 5): 2, (3, 6): 3}


@pytest.fixture
def classes() -> IncidentTable:
    category, subcategory = np.repeat(list(SIZES), list(SIZES.values()), axis=0).T
    table = make_table(category, subcategory)
    table.category_names.extend("abcd")
    return table


def test_small_classes_are_merged_within_their_category_and_small_categories_to_one(classes: IncidentTable) -> None:
    merged, stay, concerned = without_small_classes(classes, Labels(small_classes="merge", small_below=4))
    sizes = dict(zip(*np.unique(merged.category, return_counts=True), strict=True))
    assert sizes == {0: 25, 1: 11, 4: 5}
    assert merged.category_names[4] == "(small categories)"
    subcategories = {key: set(merged.subcategory[classes.subcategory == key[1]]) for key in SIZES}
    assert subcategories[0, 1] == subcategories[0, 2] != subcategories[1, 4]
    assert subcategories[2, 5] == subcategories[3, 6]
    assert len(set.union(*subcategories.values())) == 5
    assert (bool(stay.all()), concerned) == (True, 11)


def test_small_classes_are_dropped_where_declared(classes: IncidentTable) -> None:
    table, stay, concerned = without_small_classes(classes, Labels(small_classes="drop", small_below=4))
    assert set(table.subcategory[stay]) == {0, 3}
    assert (stay.sum(), concerned) == (30, 11)


def test_small_classes_stay_unless_declared(classes: IncidentTable) -> None:
    table, stay, concerned = without_small_classes(classes, Labels(small_below=100))
    assert (table is classes, bool(stay.all()), concerned) == (True, True, 0)


def test_incidents_of_dropped_classes_are_in_no_split(incidents_csv: Path) -> None:
    labels = Labels(small_classes="drop", small_below=30)
    data = load_data(TrialConfig(incidents=Incidents(path=str(incidents_csv)), labels=labels, model="none"))
    members = np.concatenate(list(data.splits.values()))
    assert 0 < data.small == len(data.table) - len(members)
    assert np.bincount(data.table.subcategory[data.table.subcategory >= 0])[data.table.subcategory[members]].min() >= 30


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [(0, 1, True), (0, 2, False), (0, 3, True), (3, 4, True), (0, 4, True), (0, 5, False), (3, 5, False), (1, 6, True)],
    ids=["subcategory", "other", "unknown", "both unknown", "unknown again", "category", "elsewhere", "linked"],
)
def test_what_may_be_alike_is_no_negative(one: int, other: int, alike: bool) -> None:
    table = make_table([0, 0, 0, 0, 0, 1, 1], [0, 0, 1, -1, -1, 2, 2], cluster=[0, 1, 2, 3, 4, 5, 1])
    assert may_be_alike(table, np.array([one]), np.array([other])).tolist() == [alike]
