"""A password and a word of tickets, which must come out nowhere: looked for in whatever a test leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PASSWORD = "Kanarienpasswort"  # of the server of the tests, which asks for none
TICKET = "Kanarienvogel"
UNREAD = {"incident_hpo.dataset_chunks"}  # the data set itself, masked and compressed
READ_BY_PEOPLE = {".html", ".json", ".jsonl", ".log", ".md", ".yaml"}
TABLES = """SELECT schemaname || '.' || quote_ident(tablename) FROM pg_tables
WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"""


def leaked(text: str) -> list[str]:
    return [word for word in (PASSWORD, TICKET) if word.lower() in text.lower()]


def refuse(text: str, where: str) -> None:
    if found := leaked(text):
        raise AssertionError(f"{where} shows {' and '.join(found)}")


def refuse_in_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.suffix in READ_BY_PEOPLE and path.is_file():
            refuse(path.read_text(errors="replace"), str(path))


def refuse_in_tables(cursor: Any) -> None:
    cursor.execute(TABLES)
    for (name,) in cursor.fetchall():
        if name not in UNREAD:
            cursor.execute(f"SELECT t::text FROM {name} t")
            refuse("\n".join(row for (row,) in cursor.fetchall()), name)
