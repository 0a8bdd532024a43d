"""The report as sections of paragraphs, tables and lists: what terminal, Markdown and page have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

from hpo.confirmed import Confirmation, in_words
from hpo.display import duration
from hpo.evidence import Finding
from hpo.feasibility import Feasibility, odds, percent
from hpo.report import Phase, Projection, Report
from hpo.report_page import Section
from objectives.evaluation import METRICS

Row = tuple[str, ...]


def sections(report: Report) -> list[Section]:
    """Those that have something to say."""
    found = [
        Section("Summary", report.summary),
        _metrics(report.metrics, report.verdicts),
        _ahead(report.metrics),
        _phases(report.phases),
        _projections(report.projections),
        _confirmation(report.confirmation),
        Section("Findings", items=tuple(map(_finding, report.findings))),
        _steps(report),
        Section("The best configuration", table=(("parameter", "value"), report.parameters)),
    ]
    return [_without_empty_columns(section) for section in found if section and _says_something(section)]


def _without_empty_columns(section: Section) -> Section:
    if section.table is None or not section.table[1]:
        return section
    heading, rows = section.table
    kept = [any(column) for column in zip(*rows, strict=True)]
    return replace(section, table=(_kept(heading, kept), tuple(_kept(row, kept) for row in rows)))


def _kept(row: Row, kept: Sequence[bool]) -> Row:
    return tuple(compress(row, kept))


def _says_something(section: Section) -> bool:
    return bool(section.paragraphs or section.items or (section.table and section.table[1]))


def _metrics(rows: Sequence[Feasibility], verdicts: Sequence[str]) -> Section:
    heading = ("metric", "baseline", "best", "95 %", "ceiling", "of it", "target", "gap")
    return Section("Which targets can be met", items=tuple(verdicts), table=(heading, tuple(map(_metric, rows))))


def _metric(row: Feasibility) -> Row:
    return (
        row.metric,
        f"{row.baseline[1]:.3f}" if row.baseline else "",
        f"{row.best:.3f}",
        _span(row.interval),
        f"{row.ceiling:.3f}",
        percent(row.share_of_ceiling),
        f"{row.target:.2f}" if row.target is not None else "",
        f"{row.gap:.3f}" if row.gap else "",
    )


def _span(ends: tuple[float, float] | None) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""


def _ahead(rows: Sequence[Feasibility]) -> Section | None:
    known = [row for row in rows if row.range]
    if not known:
        return None
    told = (
        f"Where the highest of each metric will be after {known[0].more} more trials in this space, told from those so "
        "far: four times in five within the range.",
    )
    table = tuple((row.metric, f"{row.highest:.3f}", _span(row.range), _odds(row)) for row in known)
    return Section(
        "What more trials would bring", told, (("metric", "highest", "80 % range", "chance of the target"), table)
    )


def _odds(row: Feasibility) -> str:
    if row.chance is not None:
        return odds(row.chance)
    return {"met": "met", "met elsewhere": f"met by trial {row.elsewhere}", "impossible": "none"}.get(row.state, "")


def _phases(phases: Sequence[Phase]) -> Section:
    rows = [
        (one.name, str(one.trials), *(f"{one.scores[m]:.3f}" if m in one.scores else "" for m in METRICS), _gain(one))
        for one in phases
    ]
    return Section("What each phase brought", table=(("phase", "trials", *METRICS, "gain"), tuple(rows)))


def _gain(phase: Phase) -> str:
    return f"{phase.gain:+.3f}" if phase.gain is not None else ""


def _projections(projections: Sequence[Projection]) -> Section:
    held = [one.has_held for one in projections if one.has_held is not None]
    score = (f"{sum(held)} of {len(held)} ranges told before have held.",) if held else ()
    rows = [
        (
            one.metric,
            one.told_after,
            one.at_end_of,
            _span(one.range),
            f"{one.came:.3f}" if one.came is not None else "not yet",
            {True: "held", False: "missed", None: ""}[one.has_held],
        )
        for one in projections
    ]
    heading = ("metric", "told after", "for the end of", "80 % range", "came", "")
    return Section("Projections", score, (heading, tuple(rows)))


def _confirmation(found: Confirmation | None) -> Section | None:
    if found is None:
        return None
    said = in_words(found)
    rows = [
        (
            run.baseline or f"trial {run.trial}",
            str(run.seeds),
            f"{run.mean['spearman']:.4f}",
            f"{run.spread['spearman']:.4f}",
            f"{run.test['spearman']:.4f}" if run.test else "",
        )
        for run in found.runs
    ]
    heading = ("configuration", "seeds", "mean on validation", "spread", "mean on test")
    return Section(
        "Confirmed on several seeds",
        (f"{said[0].upper()}{said[1:]}.", f"{found.why_stopped[0].upper()}{found.why_stopped[1:]}."),
        (heading, tuple(rows)),
    )


def _finding(found: Finding) -> str:
    return f"{found.title}: {found.evidence}. Next: {found.next_step}."


def _steps(report: Report) -> Section:
    rows = [
        (
            step.what,
            f"{step.gain:+.4f}" if step.gain is not None else "",
            duration(3600 * step.gpu_hours) if step.gpu_hours is not None else "",
            step.basis,
        )
        for step in report.steps
    ]
    return Section("Next steps", table=(("what", "gain", "device time", "told from"), tuple(rows)))
