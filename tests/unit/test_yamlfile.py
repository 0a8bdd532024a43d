"""The YAML reader is strict and names file and line; what the writer writes, any YAML reader reads alike."""

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from ruamel.yaml import YAML

from hpo.errors import InputError
from hpo.yamlfile import MAX_BYTES, read_yaml, write_yaml

STRICT = ConfigDict(extra="forbid", strict=True)
few = settings(derandomize=True, max_examples=60, deadline=None, database=None)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x85"), max_size=12)
SCALARS = st.one_of(TEXT, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.none())
NESTED = st.recursive(
    st.one_of(SCALARS, st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(TEXT, NESTED, max_size=5)


class Inner(BaseModel):
    model_config = STRICT
    rate: float = 0.1
    patience: int | Literal["off"] = "off"


class File(BaseModel):
    model_config = STRICT
    name: str
    inner: Inner = Inner()
    values: dict[str, str | int | float] = Field(default={})


def read(folder: Path, text: str | bytes) -> File:
    path = folder / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path, File)


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    file = read(tmp_path, "name: on\ninner: {rate: 1e-5, patience: off}\nvalues: {a: yes, b: 012, c: 1:30}\n")
    assert (file.name, file.inner.rate, file.inner.patience) == ("on", 1e-5, "off")
    assert file.values == {"a": "yes", "b": 12, "c": "1:30"}


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("name: a\ninner:\n  rate: 1\n  rate: 2\n", 4, 'found duplicate key "rate"'),
        ("name: a\ninner:\n  rates: 1\n", 3, "unknown key 'inner.rates'"),
        ("inner:\n  rate: 1.0\n", 1, "'name' is missing"),
        ("name: a\n\ninner:\n  rate: fast\n", 4, "inner.rate: Input should be a valid number, found 'fast'"),
        ("name: a\ninner:\n  rate: 0.1\n  patience: soon\n", 4, "inner.patience"),
        ("name: a\nvalues:\n  x: 1\n  y: [2]\n", 4, "values.y"),
        ("name: 1\n", 1, "name: Input should be a valid string, found 1"),
        ("name: a\ninner: &x {rate: 0.1}\n", 2, "anchors and aliases are not read"),
        ("name: a\ninner:\n  rate: 0.1\n bad\n", 4, ""),
        ("name: a\n---\nname: b\n", 2, "another document"),
        ("name: a\ninner: !!python/object:os.system {}\n", 2, "could not determine a constructor"),
        ("", 1, "the file"),
    ],
    ids=lambda value: str(value).replace("\n", "|")[:24],
)
def test_a_mistake_is_named_with_file_and_line(tmp_path: Path, text: str, line: int, complaint: str) -> None:
    with pytest.raises(InputError) as refused:
        read(tmp_path, text)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'file.yaml'}:{line}: ")
    assert complaint in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"name: \xff", "not UTF-8"),
        ("name: a\n" + "#" * MAX_BYTES, "is this the right file"),
        ("[" * 1000, "not readable as YAML"),
        ("name: 2024-99-99", "not readable as YAML"),
        ("name: \x01", "not readable as YAML"),
    ],
    ids=["not UTF-8", "too large", "too deep", "no such date", "control character"],
)
def test_what_is_no_yaml_is_refused(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    with pytest.raises(InputError, match=f"{tmp_path / 'file.yaml'}: .*{complaint}"):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read .No such file"):
        read_yaml(tmp_path / "none.yaml", File)


@given(DOCUMENTS)
@example({"a": "off", "b": "1e5", "c": "1:30", "d": "0x1F", "e": "2024-01-01", "f": "=", "g": "<<", "no": 1})
@example({"a": 1e-5, "b": 1e16, "c": -1e-300, "d": 5e-324, "e": -0.0, "f": 123456789.125, "g": 10**30})
@example({"long": "word " * 60, "lines": " one\n\ntwo \n", "empty": "", "quotes": "'\"\\", "nested": {"": [[], {}]}})
@few
def test_pyyaml_and_ruamel_read_what_is_written_to_equal_values(value: dict[str, Any]) -> None:
    text = write_yaml(value, "two lines\nof comment")
    assert text.startswith("# two lines\n# of comment\n")
    assert yaml.safe_load(text) == value
    assert YAML(typ="safe", pure=True).load(text) == value


def test_equal_values_are_written_out_twice_without_anchors(tmp_path: Path) -> None:
    shared = {"x": 1e-5}
    assert write_yaml({"a": shared, "b": shared}, "c") == "# c\na:\n  x: 1.0e-05\nb:\n  x: 1.0e-05\n"


def test_floats_stay_floats_in_both_versions_of_yaml() -> None:
    text = write_yaml({"rate": 2e-5, "whole": 1e16}, "floats")
    assert [type(value) for value in yaml.safe_load(text).values()] == [float, float]
