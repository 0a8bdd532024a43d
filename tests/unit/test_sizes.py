"""The product stays small enough to be read: no long function, no long file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("hpo", "objectives", "search_spaces", "storage")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 350


def test_no_function_is_longer_than_sixty_lines() -> None:
    long = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{path.name}:{node.lineno} {node.name}: {lines}"] if lines > MAX_FUNCTION_LINES else []
    assert not long


def test_no_file_is_longer_than_350_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    with capsys.disabled():
        print(f"\n{sum(lines.values())} lines of Python in {len(lines)} files of the product")  # noqa: T201
    assert lines
    assert not {name: count for name, count in lines.items() if count > MAX_FILE_LINES}
