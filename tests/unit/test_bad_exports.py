"""Exports of kinds that real desks produce: each is read as it is meant, or refused with its file in one sentence."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pytest

from hpo.study_file import whole_incidents
from objectives.config import Incidents, Pairs, TrialConfig
from objectives.data import load_data, train_pairs
from objectives.reading import DataError

HEADER = "number,short_description,description,category,subcategory\n"
SIZE = 400


def table(row: Callable[[int], str], size: int = SIZE) -> str:
    return HEADER + "".join(row(number) + "\n" for number in range(size))


GOOD = table(lambda n: f"{n},mail problem {n} on day {n * 7 % 31},details {n},c{n % 4},s{n % 8}")
MEANT = {
    "no newline at the end": GOOD.rstrip("\n").encode(),
    "carriage returns": GOOD.replace("\n", "\r").encode(),
    "both": GOOD.replace("\n", "\r\n").encode(),
    "two byte order marks": b"\xef\xbb\xbf\xef\xbb\xbf" + GOOD.encode(),
    "the separator told": ("sep=;\n" + GOOD.replace(",", ";")).encode(),
    "semicolons": GOOD.replace(",", ";").encode(),
    "tabs": GOOD.replace(",", "\t").encode(),
    "bars": GOOD.replace(",", "|").encode(),
    "a comma at each end": GOOD.replace("\n", ",\n").encode(),
    "names with spaces": GOOD.replace("number,short_description", " number , short_description").encode(),
    "the header again": (GOOD + HEADER).encode(),
    "rows of nothing": (GOOD + ",,,,\n,,,,\n").encode(),
    "blank lines": GOOD.replace("\n", "\n\n").encode(),
    "NUL in a field": GOOD.replace("mail problem 7 ", "mail\0problem 7 ").encode(),
    "quotes inside": GOOD.replace("mail problem 7 ", 'mail "problem" 7 ').encode(),
    "formulas": GOOD.replace("mail problem 7", "=cmd|' /C calc'!A0").encode(),
    "emoji": GOOD.replace("mail", "\U0001f4e7").encode(),
    "right to left": GOOD.replace("mail", "\u202email").encode(),
    "zipped": gzip.compress(GOOD.encode()),
    "more columns": GOOD.replace("\n", ",x,y\n").replace("subcategory,x,y", "subcategory,a,a").encode(),
}


def broken_xlsx() -> bytes:
    """A workbook whose sheet ends in the middle."""
    whole, broken = io.BytesIO(), io.BytesIO()
    book = openpyxl.Workbook()
    for line in GOOD.splitlines():
        book.active.append(line.split(","))
    book.save(whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(broken, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[: len(content) // 2] if "sheet1" in name else content)
    return broken.getvalue()


NO_COLUMNS = ":1: no column 'number'"
NO_NAMES = "its first line holds no names of columns"
REFUSED = {
    "empty": (b"", "the file has no header"),
    "spaces": (b"   \n  \n", NO_COLUMNS),
    "header only": (HEADER.encode(), ": none of 0 rows has both text and a category"),
    "NUL": (b"\0" * 5000, NO_NAMES),
    "UTF-16 without a mark": (GOOD.encode("utf-16-le"), NO_NAMES),
    "UTF-16": (GOOD.encode("utf-16"), ":1: not UTF-8"),
    "UTF-32": (GOOD.encode("utf-32"), ":1: not UTF-8"),
    "latin-1": (GOOD.replace("details 9,", "d\xe9tails,").encode("latin-1"), ":11: not UTF-8"),
    "open quote": ((GOOD + '999,"never closed,a,b,c\n').encode(), ":402: not readable as CSV"),
    "text after a quote": ((GOOD + '999,"say" hi,a,b,c\n').encode(), ":402: not readable as CSV"),
    "fewer fields": ((GOOD + "999,a,b\n").encode(), ":402: found 3 fields, the header has 5"),
    "more fields": ((GOOD + "999,a,b,c,d,e\n").encode(), ":402: found 6 fields, the header has 5"),
    "fewer fields after the separator told": (("sep=,\n" + GOOD + "999,a\n").encode(), ":403: found 2 fields"),
    "a title": (("Incident report 2024\n" + GOOD).encode(), NO_COLUMNS),
    "unknown separator": (GOOD.replace(",", "^").encode(), NO_COLUMNS),
    "no header": (GOOD.removeprefix(HEADER).encode(), NO_COLUMNS),
    "a ticket for a header": ((GOOD.replace(HEADER, "1," + "words of a ticket " * 9 + ",b,c,d\n")).encode(), NO_NAMES),
    "an id twice": ((GOOD + "5,a,b,c,d\n").encode(), ":402: id '5' is not unique"),
    "no id": ((GOOD + ",a,b,c,d\n").encode(), ":402: id '' is empty"),
    "a name twice": (GOOD.replace("subcategory", "category", 1).encode(), ":1: two columns are named 'category'"),
    "other names": (GOOD.replace("category,", "kind,", 1).encode(), ":1: no column 'category'; the file has number"),
    "no text": (table(lambda n: f"{n},,,c,s").encode(), ": none of 400 rows has both text and a category"),
    "no category": (table(lambda n: f"{n},a,b,,").encode(), ": none of 400 rows has both text and a category"),
    "one category": (
        table(lambda n: f"{n},text {n},b,c,s").encode(),
        ": no negative pair among the held-out incidents (400 incidents of 1 categories",
    ),
    "a category each": (
        table(lambda n: f"{n},text {n},b,c{n},s").encode(),
        ": no positive pair among the held-out incidents (400 incidents of 400",
    ),
    "one row": (
        table(lambda n: "1,a,b,c,d", 1).encode(),
        ": no positive and no negative pair among the held-out incidents",
    ),
    "one text": (
        table(lambda n: f"{n},same,same,c{n % 4},s").encode(),
        ": no two training incidents make a positive pair",
    ),
    "only HTML": (table(lambda n: f"{n},<p></p>,<br>,c,s").encode(), ": none of 400 rows has both text"),
    "huge field": ((GOOD + f"999,{'m' * (1 << 21)},b,c,d\n").encode(), ":402: not readable as CSV (field larger"),
    "cut": (gzip.compress(GOOD.encode())[:-20], ": cannot be read (Compressed file ended"),
    "zipped twice": (gzip.compress(gzip.compress(GOOD.encode())), ":1: not UTF-8"),
    "PDF": (b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", ":2: not UTF-8"),
    "HTML": (b"<html><table><tr><td>number</td></tr></table></html>", NO_COLUMNS),
    "JSON": (b'[{"number": 1}]', NO_COLUMNS),
    "Parquet, cut": (b"PAR1" + b"x" * 50, ": not readable as Parquet"),
    "a zip of something": (b"PK\x03\x04" + b"x" * 100, ": neither an Excel file nor a CSV file"),
    "Excel, its XML cut": (broken_xlsx(), ": neither an Excel file nor a CSV file"),
    "binary": (bytes(range(128, 256)) * 20, ":1: not UTF-8"),
}


def load(path: Path, content: bytes) -> int:
    """How many incidents it holds."""
    path.write_bytes(content)
    config = TrialConfig(incidents=Incidents(path=str(path)), pairs=Pairs(held_out=200), model="none")
    data = load_data(config)
    train_pairs(data, config)
    return len(data.table)


@pytest.mark.parametrize("content", MEANT.values(), ids=MEANT)
def test_export_is_read_as_it_is_meant(tmp_path: Path, content: bytes) -> None:
    assert load(tmp_path / "export.csv", content) == SIZE


@pytest.mark.parametrize(("content", "complaint"), REFUSED.values(), ids=REFUSED)
def test_export_is_refused_with_its_file_in_one_sentence(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "export.csv"
    with pytest.raises(DataError) as refused:
        load(path, content)
    message = str(refused.value)
    assert message.startswith(f"{path}:")
    assert complaint in message
    assert message.isprintable()
    assert "words of a ticket" not in message


def test_pipe_is_refused_before_it_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "export.csv")
    with pytest.raises(DataError, match="neither a file nor a link to one"):
        whole_incidents(Incidents(path="export.csv"), tmp_path)


def test_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "export.csv").symlink_to("export.csv")
    with pytest.raises(DataError, match=r"export\.csv: cannot be read .Too many levels"):
        whole_incidents(Incidents(path="export.csv"), tmp_path)
