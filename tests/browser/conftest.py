"""Chromium, as it is started on a machine without a display, and dashboards; nothing goes further than this machine."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from tests.browser.served import ACCESS, Place, Served, all_rows, make_place, serving
from tests.conftest import TEMPLATE, TEST_ALL, new_database

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def chromium() -> dict[str, Any]:
    """How playwright starts it; without it the test is skipped, under HPO_TEST_ALL=1 it fails."""
    if not CHROMIUM.exists() or find_spec("playwright") is None:
        missing = f"no {CHROMIUM} or no playwright: apt-get install chromium, pip install playwright"
        pytest.fail(missing) if TEST_ALL else pytest.skip(missing)
    return {"executable_path": CHROMIUM, "args": ARGUMENTS}


@pytest.fixture(scope="module")
def place(server_url: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A study with all that there may be, in a database of its own."""
    with new_database(server_url, TEMPLATE) as url:
        yield make_place(url, tmp_path_factory.mktemp("file"))


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("access") / "access.yaml"
    path.write_text(ACCESS)
    return path


@pytest.fixture(scope="module")
def read_only(place: Place, access: Path) -> Iterator[Served]:
    with serving(place.url, "--access", access) as served:
        yield served


@pytest.fixture(scope="module")
def writable(place: Place, access: Path) -> Iterator[Served]:
    with serving(place.url, "--access", access, "--write") as served:
        yield served


@pytest.fixture
def unchanged(place: Place) -> Iterator[None]:
    """Every row of every table is as it was."""
    before = all_rows(place.url)
    assert before["public.trials"]
    assert before["incident_hpo.artifacts"]
    yield
    assert all_rows(place.url) == before


@pytest.fixture(scope="module")
def by_token(place: Place) -> Iterator[Served]:
    with serving(place.url, "--write") as served:
        yield served
