"""Chromium, as it is started on a machine without a display; nothing it does goes further than this machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TEST_ALL

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
