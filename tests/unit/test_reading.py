"""Exports of any format give the same rows of text; what cannot be read is named with file and line."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet
import pytest

from objectives.config import Columns, PresetName
from objectives.presets import preset_columns
from objectives.reading import DataError, Row, read_rows

HEADER = ["number", "text", "category"]
ROWS = [["007", "Büro, kein Netz\nseit heute", "None"], ["INC1", 'say "hi"', ""]]


def as_csv(rows: list[list[str]], delimiter: str = ",", encoding: str = "utf-8") -> bytes:
    lines = [delimiter.join('"' + field.replace('"', '""') + '"' for field in row) + "\r\n" for row in rows]
    return "".join(lines).encode(encoding)


def as_excel(rows: Sequence[Sequence[object]]) -> bytes:
    book = openpyxl.Workbook()
    for row in rows:
        book.worksheets[0].append(row)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def as_parquet(rows: list[list[str]]) -> bytes:
    columns = list(zip(*rows, strict=True))
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.table({column[0]: list(column[1:]) for column in columns}), buffer)
    return buffer.getvalue()


def read(path: Path, content: bytes, encoding: str = "utf-8") -> list[Row]:
    path.write_bytes(content)
    return list(read_rows(path, encoding))


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (as_csv([HEADER, *ROWS]), "utf-8"),
        (b"\xef\xbb\xbf" + as_csv([HEADER, *ROWS]), "utf-8"),
        (as_csv([HEADER, *ROWS], ";"), "utf-8"),
        (as_csv([HEADER, *ROWS], "\t"), "utf-8"),
        (as_csv([HEADER, *ROWS], "|", "cp1252"), "cp1252"),
        (as_csv([HEADER, *ROWS], encoding="utf-16"), "utf-16"),
        (gzip.compress(as_csv([HEADER, *ROWS])), "utf-8"),
        (as_excel([HEADER, *ROWS]), "utf-8"),
        (as_parquet([HEADER, *ROWS]), "utf-8"),
    ],
    ids=["CSV", "byte order mark", "semicolons", "tabs", "bars, cp1252", "UTF-16", "gzip", "Excel", "Parquet"],
)
def test_rows_are_the_same_whatever_the_format_and_the_name_of_the_file(
    tmp_path: Path, content: bytes, encoding: str
) -> None:
    assert [fields for _, fields in read(tmp_path / "export.dat", content, encoding)] == [HEADER, *ROWS]


def test_numbers_and_dates_of_a_sheet_are_as_people_see_them(tmp_path: Path) -> None:
    cells = [7, 7.0, 0.5, datetime(2024, 3, 2, 13, 45), True, None]
    rows = read(tmp_path / "export.xlsx", as_excel([list("abcdef"), cells]))
    assert rows[1] == (2, ["7", "7", "0.5", "2024-03-02 13:45:00", "True", ""])


def test_empty_rows_and_columns_of_a_sheet_do_not_count(tmp_path: Path) -> None:
    content = as_excel([["a", "b", None], [None, None, None], ["1", None, None]])
    assert read(tmp_path / "export.xlsx", content) == [(1, ["a", "b"]), (3, ["1", ""])]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (as_excel([["a", "b"], ["1", "2", "3"]]), ": row 2 has a field beyond the 2 columns of the heading"),
        (b"\xd0\xcf\x11\xe0 old", ": an Excel file of the old kind; save it as .xlsx or as CSV"),
        (b"PK\x03\x04 no book", ": neither an Excel file nor a CSV file; save it anew"),
        (as_parquet([HEADER, *ROWS])[:-9], ": not readable as Parquet ("),
        (b"PAR1" + b"\x5a" * 60 + as_parquet([HEADER, *ROWS])[64:], ": cannot be read ("),
        ("a,b\nn\xe4h,2\n".encode("latin-1"), ":2: not UTF-8; declare its encoding in incidents.encoding"),
        ("a,b\n1,2\n".encode("utf-16"), ":1: not UTF-8; declare its encoding in incidents.encoding"),
        (b"a;b\n1;2;3\n", ":2: found 3 fields, the header has 2"),
        (gzip.compress(b"a,b\n1,2\n")[:-9], ": cannot be read ("),
    ],
    ids=["wide", "old Excel", "zip", "cut Parquet", "damaged Parquet", "latin", "UTF-16", "fields", "cut gzip"],
)
def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(DataError) as refused:
        read(tmp_path / "export", content)
    assert str(refused.value).startswith(f"{tmp_path / 'export'}{complaint}")
    assert "\n" not in str(refused.value)


def columns(path: Path, preset: PresetName, *header: str) -> Columns:
    path.write_bytes(as_csv([list(header)]))
    return preset_columns(path, "utf-8", preset)


def test_servicenow_is_mapped_by_names_or_labels_and_what_is_missing_is_left_out(tmp_path: Path) -> None:
    labels = ("Number", "Short description", "Category", "Configuration item", "Opened")
    found = columns(tmp_path / "export.csv", "servicenow", *labels)
    assert found == Columns(
        id="Number",
        text=("Short description",),
        category="Category",
        subcategory=None,
        configuration_item="Configuration item",
        opened="Opened",
    )
    assert columns(
        tmp_path / "export.csv", "servicenow", "number", "description", "category", "subcategory"
    ) == Columns(text=("description",))


def test_jira_is_mapped_with_its_form_of_dates(tmp_path: Path) -> None:
    found = columns(tmp_path / "export.csv", "jira", "Summary", "Issue key", "Request Type", "Created")
    assert (found.id, found.category, found.opened) == ("Issue key", "Request Type", "Created")
    assert datetime.strptime("02/Mar/24 1:45 PM", found.opened_format or "") == datetime(2024, 3, 2, 13, 45)


def test_export_without_what_a_preset_needs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column for id, category as servicenow names it; the file has ID"):
        columns(tmp_path / "export.csv", "servicenow", "ID", "Description")
