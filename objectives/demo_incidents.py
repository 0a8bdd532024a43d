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
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

Row = dict[str, str]
VOCABULARY = Path(__file__).with_name("demo_vocabulary.yaml")
DEFAULT_INCIDENTS = 4000
TEXTS = ["short_description", "description"]
COLUMNS = ["number", "opened_at", *TEXTS, "category", "subcategory"]
COLUMNS += ["cmdb_ci", "assignment_group", "close_notes", "duplicate_of"]
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
    phrases: list[str]
    words: dict[str, list[str]]  # what a $name stands for in a report of this problem


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
    """Rows with the keys COLUMNS, over one year, in the order in which they were opened."""
    desk = ServiceDesk(seed)
    rows: list[Row] = []
    recent: deque[tuple[datetime, Case, Row]] = deque()
    for opened_at in desk.opening_times(incidents):
        while recent and opened_at - recent[0][0] > REPEATED_WITHIN:
            recent.popleft()
        row = {"number": f"INC{FIRST_NUMBER + len(rows):07d}", "opened_at": str(opened_at)}
        if recent and desk.happens("duplicate"):
            _, case, first = recent[desk.rng.integers(len(recent))]
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
        self.shares = np.cumsum([problem.share for problem in self.problems])

    def opening_times(self, incidents: int) -> list[datetime]:
        hours = np.cumsum(np.outer(self.vocabulary["weekdays"] * WEEKS, self.vocabulary["hours"]))
        hour = np.searchsorted(hours, self.rng.integers(hours[-1], size=incidents), side="right")
        seconds = np.sort(hour * 3600 + self.rng.integers(3600, size=incidents))
        return [FIRST_DAY + timedelta(seconds=int(second)) for second in seconds]

    def happens(self, rate: str) -> bool:
        return bool(self.rng.random() < self.vocabulary["rates"][rate])

    def pick(self, options: list[str]) -> str:
        return options[self.rng.integers(len(options))]

    def new_case(self) -> Case:
        share = self.rng.random() * self.shares[-1]
        return Case(self.problems[int(np.searchsorted(self.shares, share, side="right"))])

    def report(self, case: Case) -> Row:
        problem, words = case.problem, case.problem.words
        vague = replace(case, problem=replace(problem, phrases=words["vague"]), unsaid=[])
        told = vague if self.happens("vague") else case
        texts = self.in_own_words([self.expand(self.pick(words[name]), told) for name in TEXTS])
        return dict(zip(TEXTS, texts, strict=True)) | {
            "category": problem.category,
            "subcategory": self.pick(words["sibling"]) if self.happens("mislabelled") else problem.subcategory,
            "cmdb_ci": "" if self.happens("no_item") else self.expand("$item", case),
            "assignment_group": words["desk"][0],
            "close_notes": self.expand(self.pick(words["close_notes"]), case),
            "duplicate_of": "",
        }

    def repeat(self, case: Case, first: Row) -> Row:
        same = TEXTS if self.happens("same_text") else []
        return self.report(case) | {name: first[name] for name in same} | {"duplicate_of": first["number"]}

    def expand(self, text: str, case: Case) -> str:
        while PART.search(text):
            text = PART.sub(lambda part: self.replacement(part, case), text)
        return text

    def replacement(self, part: re.Match[str], case: Case) -> str:
        alternatives, name = part.groups()
        if name is None:
            return self.pick(alternatives.split("|"))
        if name == "problem":
            return self.next_phrase(case)
        if name not in self.vocabulary["facts"]:
            return self.pick(case.problem.words[name])
        if name not in case.facts:
            case.facts[name] = self.expand(self.pick(case.problem.words[name]), case)
        return case.facts[name]

    def next_phrase(self, case: Case) -> str:
        case.unsaid = case.unsaid or [str(phrase) for phrase in self.rng.permutation(case.problem.phrases)]
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
        at = self.rng.integers(len(word) - 1)
        this, following = word[at], word[at + 1]
        return word[:at] + self.pick([following + this, following, this + this + following]) + word[at + 2 :]


def _problems(vocabulary: dict[str, Any]) -> Iterator[Problem]:
    """Shares fall with the rank of category, subcategory and problem, as Zipf's law has it."""
    for category_rank, (category, entry) in enumerate(vocabulary["categories"].items(), 1):
        for rank, (subcategory, problems) in enumerate(entry["subcategories"].items(), 1):
            siblings = [name for name in entry["subcategories"] if name != subcategory]
            words = vocabulary["words"] | vocabulary["texts"] | {"desk": [entry["desk"]], "sibling": siblings}
            words |= {name: entry[name][subcategory] for name in ("item", "topic")}
            for problem_rank, (fix, phrases) in enumerate(problems.items(), 1):
                share = 1 / (category_rank**0.5 * rank**0.8 * problem_rank**0.5)
                yield Problem(category, subcategory, share, phrases, words | {"fix": [fix]})
