"""Synthetic IT service desk incidents for demonstrations and tests; what people write is in demo_vocabulary.yaml.

A case is one underlying problem at one place. An incident is a report of a case, and a duplicate is a later report of
the same case in words not used before.
"""

from __future__ import annotations

import csv
import os
import re
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

T = TypeVar("T")
Row = dict[str, str]

VOCABULARY = Path(__file__).with_name("demo_vocabulary.yaml")
COLUMNS = ["number", "opened_at", "short_description", "description", "category", "subcategory"]
COLUMNS += ["cmdb_ci", "assignment_group", "close_notes", "duplicate_of"]
DEFAULT_INCIDENTS = 4000
FIRST_NUMBER = 10001
FIRST_DAY = datetime(2024, 1, 1)  # a Monday: the vocabulary's weekdays start there
WEEKS = 52
REPEATED_WITHIN = timedelta(days=4)
PART = re.compile(r"\(([^()]*)\)|\$(\w+)")  # (a|b|c) or $name
WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Problem:
    category: str
    subcategory: str
    share: float
    siblings: list[str]  # the other subcategories of the category
    phrases: list[str]
    words: dict[str, list[str]]  # what a $name can stand for in a report of this problem


@dataclass
class Case:
    problem: Problem
    facts: Row = field(default_factory=dict)
    unsaid: list[str] = field(default_factory=list)


def write_demo_incidents(path: Path, incidents: int = DEFAULT_INCIDENTS, seed: int = 0) -> None:
    """Writes the incidents as CSV; the file appears complete or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(demo_incidents(incidents, seed))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def demo_incidents(incidents: int = DEFAULT_INCIDENTS, seed: int = 0) -> list[Row]:
    """Rows with the keys COLUMNS, over one year in the order in which they were opened."""
    desk = ServiceDesk(seed)
    rows: list[Row] = []
    recent: deque[tuple[datetime, Case, Row]] = deque()
    for opened_at in desk.opening_times(incidents):
        while recent and opened_at - recent[0][0] > REPEATED_WITHIN:
            recent.popleft()
        row = {"number": f"INC{FIRST_NUMBER + len(rows):07d}", "opened_at": str(opened_at)}
        if recent and desk.happens("duplicate"):
            _, case, first = desk.pick(recent)
            row |= desk.repeat(case, first)
        else:
            case = desk.new_case()
            row |= desk.report(case)
            recent.append((opened_at, case, row))
        rows.append(row)
    return rows


class ServiceDesk:
    """Draws cases, and reports of cases, from the vocabulary."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.vocabulary: dict[str, Any] = YAML(typ="safe", pure=True).load(VOCABULARY)
        self.problems = list(_problems(self.vocabulary))
        self.share_up_to = np.array(list(accumulate(problem.share for problem in self.problems)))

    def opening_times(self, incidents: int) -> list[datetime]:
        days = self._draw(self.vocabulary["weekdays"] * WEEKS, incidents)
        hours = self._draw(self.vocabulary["hours"], incidents)
        seconds = np.sort(days * 86_400 + hours * 3_600 + self.rng.integers(3_600, size=incidents))
        return [FIRST_DAY + timedelta(seconds=int(second)) for second in seconds]

    def _draw(self, weights: list[int], size: int) -> NDArray[np.int64]:
        return np.searchsorted(np.cumsum(weights), self.rng.integers(sum(weights), size=size), side="right")

    def happens(self, rate: str) -> bool:
        return bool(self.rng.random() < self.vocabulary["rates"][rate])

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.random() * len(options))]

    def new_case(self) -> Case:
        share = self.rng.random() * self.share_up_to[-1]
        return Case(self.problems[int(np.searchsorted(self.share_up_to, share, side="right"))])

    def report(self, case: Case) -> Row:
        problem, words = case.problem, case.problem.words
        if self.happens("vague"):
            words = words | {"problem": words["vague"]}
        texts = [self.expand(self.pick(words[name]), case, words) for name in ("short_description", "description")]
        short_description, description = self.in_own_words(texts)
        return {
            "short_description": short_description,
            "description": description,
            "category": problem.category,
            "subcategory": self.pick(problem.siblings) if self.happens("mislabelled") else problem.subcategory,
            "cmdb_ci": "" if self.happens("no_item") else self.expand("$item", case, words),
            "assignment_group": problem.words["desk"][0],
            "close_notes": self.expand(self.pick(words["close_notes"]), case, words),
            "duplicate_of": "",
        }

    def repeat(self, case: Case, first: Row) -> Row:
        same_text = ("short_description", "description") if self.happens("same_text") else ()
        return self.report(case) | {name: first[name] for name in same_text} | {"duplicate_of": first["number"]}

    def expand(self, text: str, case: Case, words: dict[str, list[str]]) -> str:
        def replacement(part: re.Match[str]) -> str:
            alternatives, name = part.groups()
            if alternatives is not None:
                return self.pick(alternatives.split("|"))
            if name == "problem" and name not in words:
                return self.next_phrase(case)
            if name not in self.vocabulary["facts"]:
                return self.pick(words[name])
            if name not in case.facts:
                case.facts[name] = self.expand(self.pick(words[name]), case, words)
            return case.facts[name]

        while PART.search(text):
            text = PART.sub(replacement, text)
        return text

    def next_phrase(self, case: Case) -> str:
        if not case.unsaid:
            case.unsaid = [str(phrase) for phrase in self.rng.permutation(case.problem.phrases)]
        return case.unsaid.pop()

    def in_own_words(self, texts: list[str]) -> list[str]:
        """Rewords, misspells and drops capitals as one person would."""
        sloppy, lower_case = self.happens("sloppy"), self.happens("lower_case")

        def own(match: re.Match[str]) -> str:
            word = match[0]
            others = self.vocabulary["other_words"].get(word.lower())
            if others and self.happens("rewording"):
                return self.pick(others)
            return self.misspell(word) if sloppy and len(word) > 3 and self.happens("typo") else word

        texts = [WORD.sub(own, text) for text in texts]
        return [text.lower() if lower_case else text[:1].upper() + text[1:] for text in texts]

    def misspell(self, word: str) -> str:
        """Two letters swapped, one left out, or one doubled."""
        at = int(self.rng.integers(len(word) - 1))
        swapped = word[at + 1] + word[at]
        return word[:at] + self.pick([swapped, word[at + 1], word[at] * 2 + word[at + 1]]) + word[at + 2 :]


def _problems(vocabulary: dict[str, Any]) -> Iterator[Problem]:
    """Shares fall with the rank of category, subcategory and problem, as Zipf's law has it."""
    texts = vocabulary["words"] | vocabulary["texts"]
    for category_rank, (category, of_category) in enumerate(vocabulary["categories"].items(), 1):
        subcategories = of_category["subcategories"]
        words = texts | {"desk": [of_category["desk"]]}
        for rank, (subcategory, problems) in enumerate(subcategories.items(), 1):
            siblings = [name for name in subcategories if name != subcategory]
            for problem_rank, (fix, phrases) in enumerate(problems.items(), 1):
                share = 1 / (category_rank**0.5 * rank * problem_rank**0.5)
                own_words = words | {"fix": [fix], "item": of_category["items"][subcategory]}
                own_words["topic"] = of_category["topics"][subcategory]
                yield Problem(category, subcategory, share, siblings, phrases, own_words)
