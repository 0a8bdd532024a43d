"""Which columns hold what in the exports of well-known service desks."""

from __future__ import annotations

from pathlib import Path

from objectives.config import Columns, PresetName
from objectives.reading import DataError, in_words, read_rows

Names = tuple[str, ...]  # of one column, as exports name it; the first that is there counts (of text, persons: all)
REQUIRED = ("id", "text", "category")
PRESETS: dict[PresetName, dict[str, Names]] = {
    "servicenow": {
        "id": ("number",),
        "text": ("short_description", "description"),
        "category": ("category",),
        "subcategory": ("subcategory",),
        "configuration_item": ("cmdb_ci", "configuration_item"),
        "duplicate_of": ("duplicate_of",),
        "parent": ("parent_incident", "parent"),
        "opened": ("opened_at", "opened", "sys_created_on", "created"),
        "persons": ("caller_id", "caller", "opened_by", "assigned_to", "resolved_by", "closed_by", "requested_for"),
    },
    "jira": {
        "id": ("issue_key", "key"),
        "text": ("summary", "description"),
        "category": ("request_type", "category", "project_name"),
        "subcategory": ("component/s", "components"),
        "configuration_item": ("affected_services",),
        "duplicate_of": ("outward_issue_link_(duplicate)", "inward_issue_link_(duplicate)"),
        "opened": ("created",),
        "persons": ("reporter", "assignee", "creator"),
    },
}
OPENED_FORMATS: dict[PresetName, str] = {"jira": "%d/%b/%y %I:%M %p"}


def preset_columns(path: Path, encoding: str, preset: PresetName) -> Columns:
    """As the file names them; what it lacks is left out. Raises DataError without id, text or category."""
    header = next(read_rows(path, encoding), (1, []))[1]
    written = {name.strip().casefold().replace(" ", "_"): name for name in reversed(header)}
    found = {use: [written[name] for name in names if name in written] for use, names in PRESETS[preset].items()}
    if lacking := [use for use in REQUIRED if not found[use]]:
        raise DataError(
            f"{path}:1: no column for {', '.join(lacking)} as {preset} names it; {in_words(header)}. "
            "Map the names under incidents.columns"
        )
    first = {use: names[0] if names else None for use, names in found.items()}
    several = {use: tuple(found[use]) for use in ("text", "persons")}
    return Columns.model_validate(
        first | several | {"opened_format": OPENED_FORMATS.get(preset), "may_repeat": preset == "jira"}
    )
