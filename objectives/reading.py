"""Ticket exports as rows of text: CSV, TSV, Excel and Parquet, known by their first bytes, gzipped or not.

Every field is text, and no value is magic: "None" and "NA" are words, and an id keeps its zeros.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

MAX_FIELD_CHARACTERS = 1 << 20
DELIMITERS = (",", ";", "\t", "|")
BATCH_ROWS = 2_000
LONGEST_NAME, MOST_WORDS = 60, 6  # of a column's name
Row = tuple[int, list[str]]  # line of the file, or row of the sheet, and its fields


class DataError(ValueError):
    """The incidents cannot be used; the message names file, line and what was expected."""

    exit_code = 2


def at_hand(path: str) -> Path:
    """The file, or a copy of what a URL leads to, which goes with the process. Raises DataError."""
    if "://" not in path:
        return Path(path)
    if re.search(r"://[^/]*@|[?]", path):
        raise DataError("incidents.path: a URL must hold no password and no query, as people will read it")
    import fsspec

    try:
        return Path(fsspec.open_local(f"simplecache::{path}"))
    except Exception as error:  # each kind of storage has its own
        raise DataError(f"{path}: cannot be fetched ({str(error).partition(chr(10))[0]})") from None


def read_rows(path: Path, encoding: str) -> Iterator[Row]:
    """The header first; every row has as many fields. Raises DataError."""
    try:
        with _open(path) as file:
            start = cast(io.BufferedReader, file).peek(4)[:4]
            if start == b"PAR1":
                yield from _parquet(path, file)
            elif start == b"PK\x03\x04":
                yield from _excel(path, file)
            elif start == b"\xd0\xcf\x11\xe0":
                raise DataError(f"{path}: an Excel file of the old kind; save it as .xlsx or as CSV")
            else:
                yield from _delimited(path, file, encoding)
    except UnicodeError:
        line = _first_wrong_line(path, encoding)
        raise DataError(f"{path}:{line}: not {encoding.upper()}; declare its encoding in incidents.encoding") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read ({reason})") from None


def in_words(header: list[str]) -> str:
    """What a file has for columns; a first line that is none may be binary, or a ticket."""
    if any(len(name) > LONGEST_NAME or len(name.split()) > MOST_WORDS or not name.isprintable() for name in header):
        return "its first line holds no names of columns"
    return f"the file has {', '.join(header) or 'no header'}"


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        is_zipped = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if is_zipped else path.open("rb")


def _delimited(path: Path, file: IO[bytes], encoding: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with io.TextIOWrapper(file, "utf-8-sig" if encoding == "utf-8" else encoding, newline="") as text:
        first, line, header = text.readline(MAX_FIELD_CHARACTERS).lstrip("\ufeff"), 1, list[str]()
        if told := re.fullmatch(r"sep=(.)\s*", first):  # which Excel writes for itself
            first, line = text.readline(), 2
        delimiter, before = told[1] if told else max(DELIMITERS, key=first.count), line
        reader = csv.reader(chain([first], text), delimiter=delimiter, strict=True)
        try:
            for fields in reader:
                if header and fields and len(fields) != len(header):  # a blank line has none
                    raise DataError(f"{path}:{line}: found {len(fields)} fields, the header has {len(header)}")
                if any(fields) and fields != header:  # exports that were put together repeat it
                    yield line, fields
                header, line = header or fields, reader.line_num + before
        except csv.Error as error:
            raise DataError(f"{path}:{line}: not readable as CSV ({error})") from None


def _excel(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """The first sheet; columns without a heading do not count."""
    import openpyxl

    warnings.filterwarnings("ignore", category=UserWarning, module="openpyxl")  # of styles and odd dates
    try:
        book = openpyxl.load_workbook(io.BytesIO(file.read()), read_only=True, data_only=True)
        yield from _sheet(path, book)
    except DataError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, SyntaxError):  # the last for XML
        raise DataError(f"{path}: neither an Excel file nor a CSV file; save it anew") from None


def _sheet(path: Path, book: Any) -> Iterator[Row]:
    with closing(book):
        width = 0
        for number, cells in enumerate(book.worksheets[0].iter_rows(values_only=True), 1):
            fields = [_in_words(cell) for cell in cells]
            width = width or next((n for n in range(len(fields), 0, -1) if fields[n - 1]), 0)
            if any(fields[width:]):
                raise DataError(f"{path}: row {number} has a field beyond the {width} columns of the heading")
            if any(fields):
                yield number, [*fields, *[""] * width][:width]


def _in_words(cell: Any) -> str:
    if cell is None or cell != cell:  # NaN
        return ""
    if isinstance(cell, bytes):
        return cell.decode()
    if isinstance(cell, datetime):
        return cell.isoformat(sep=" ")
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _parquet(path: Path, file: IO[bytes]) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        yield 1, list(table.schema_arrow.names)
        number = 1
        for batch in table.iter_batches(BATCH_ROWS):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield number, [_in_words(cell) for cell in row]
    except (pyarrow.ArrowException, OverflowError) as error:
        raise DataError(f"{path}: not readable as Parquet ({str(error).splitlines()[0]})") from None


def _first_wrong_line(path: Path, encoding: str) -> int:
    """The decoder reads in chunks and cannot tell."""
    if encoding != "utf-8":
        return 1
    with _open(path) as file:
        lines = enumerate(file, 1)
        return next((number for number, line in lines if line.decode("utf-8", "ignore").encode() != line), 1)
