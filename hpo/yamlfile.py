"""The one reader and writer of YAML: version 1.2 (`1e-5` is a number, `on` a string), duplicate keys are errors.

Messages name file and line. What is written here, plain PyYAML reads to the same values.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.resolver import implicit_resolvers

from hpo.errors import InputError

MAX_BYTES = 256 * 1024
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Place:
    """Where in a file something is written, for errors that show only when it is put together with something else."""

    path: Path
    location: tuple[int | str, ...] = ()

    def below(self, *names: int | str) -> Place:
        return Place(self.path, (*self.location, *names))

    def error(self, message: str) -> InputError:
        """Names the line of what stands there, or of the nearest thing around it."""
        line, _ = _locate(_parse(self.path, _read_text(self.path))[0], self.location, is_missing=False)
        return InputError(f"{self.path}:{line}: {message}")


def has_key(path: Path, name: str) -> bool:
    """At its top level, whatever else is wrong with the file; False where there is none."""
    try:
        return any(line.startswith(f"{name}:") for line in path.read_text(errors="replace").splitlines())
    except OSError:
        return False


def read_yaml(path: Path, model: type[Model]) -> Model:
    """Raises InputError that names the file, and the line where there is one."""
    return validated(_parse(path, _read_text(path))[1], model, Place(path))


def validated(value: Any, model: type[Model], place: Place) -> Model:
    """`place`: where the value was read from. Raises InputError with its line."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")  # a typo hides what it meant
        tree, is_missing = _parse(place.path, _read_text(place.path))[0], first["type"] == "missing"
        line, name = _locate(tree, (*place.location, *first["loc"]), is_missing=is_missing)
        raise InputError(f"{place.path}:{line}: {_sentence(first, name)}") from None


def write_yaml(value: dict[str, Any], comment: str) -> str:
    """YAML text under a comment; floats as `1.0e-05`, which both versions of YAML read as a number."""
    yaml = YAML()
    yaml.representer.add_representer(float, _represent_float)
    yaml.representer.add_representer(str, _represent_str)
    yaml.representer.ignore_aliases = lambda _: True
    yaml.width = 120
    out = io.StringIO()
    yaml.dump(value, out)
    return "".join(f"# {line}\n" for line in comment.splitlines()) + out.getvalue()


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except ValueError:
        raise InputError(f"{str(path)!r} cannot be the name of a file") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: {len(data)} bytes, at most {MAX_BYTES} are read; is this the right file?")
    return text


def _parse(path: Path, text: str) -> tuple[Node | None, Any]:
    try:
        tree = YAML(typ="safe", pure=True).compose(text)
        _refuse_aliases(path, text)
        return tree, YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = str(error.problem or error.context).splitlines()[0].partition(" with value ")[0]
        raise InputError(f"{path}:{line}: {problem}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from None


def _refuse_aliases(path: Path, text: str) -> None:
    for event in YAML(typ="safe", pure=True).parse(text):
        if getattr(event, "anchor", None) is not None:
            raise InputError(
                f"{path}:{event.start_mark.line + 1}: anchors and aliases are not read; write the value out"
            )


def _locate(node: Node | None, location: tuple[int | str, ...], *, is_missing: bool) -> tuple[int, str]:
    """The line of the deepest part of `location` that stands in the file, and the dotted name up to there.

    Parts that are not in the file are the branches of a union, but for the last of a missing key.
    """
    line, name = (node.start_mark.line if node else 0), []
    for i, part in enumerate(location):
        found = None
        if isinstance(node, MappingNode):
            found = next(((key.start_mark.line, value) for key, value in node.value if key.value == str(part)), None)
        elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part].start_mark.line, node.value[part]
        if found:
            line, node = found
        if found or (is_missing and i == len(location) - 1):
            name.append(str(part))
    return line + 1, ".".join(name) or "the file"


def _sentence(error: ErrorDetails, name: str) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key {name!r}"
    if error["type"] == "missing":
        return f"{name!r} is missing"
    if error["type"] == "union_tag_not_found":
        return f"'{name}.type' is missing"
    value = error["input"]
    got = f", found {value!r}" if isinstance(value, str | int | float | bool | None) else ""
    return f"{name}: {_expected(error)}{got}"


def _expected(error: ErrorDetails) -> str:
    """Where pydantic speaks of Python."""
    context = error.get("ctx", {})
    if error["loc"][-1:] == ("str",):  # the first branch of a value
        return "expected a number or a word"
    if error["type"] == "too_short":
        return f"at least {context['min_length']} expected, found {context['actual_length']}"
    if error["type"] == "union_tag_invalid":
        return f"type {context['tag']!r} is none of {context['expected_tags']}"
    if error["type"] in ("model_type", "dict_type", "tuple_type"):
        return f"expected a {'list' if error['type'] == 'tuple_type' else 'mapping'}"
    return error["msg"].removeprefix("Value error, ")


def _represent_float(representer: RoundTripRepresenter, value: float) -> Any:
    text = re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    return representer.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_str(representer: RoundTripRepresenter, value: str) -> Any:
    """Quoted where YAML 1.1 would read something else: `off` is false there."""
    other_in_1_1 = any((1, 1) in versions and regexp.match(value) for versions, _, regexp, _ in implicit_resolvers)
    quoted = other_in_1_1 or "\x85" in value  # a line break of 1.1
    return representer.represent_scalar("tag:yaml.org,2002:str", value, style='"' if quoted else None)
