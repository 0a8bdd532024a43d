"""A base model's files: a folder, an installed package, or a repository of the Hugging Face hub. Loads no torch.

A study pins one version of them: of a repository a commit, of a package its version, of a folder the SHA-256. They
are fetched once, before the first trial; from then on nothing asks the hub. Weights are safetensors only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from objectives.config import STATIC

FILES = ("*.safetensors", "*.json", "*.txt", "*.model")  # weights, configuration, vocabularies; nothing that runs
UNUSED = ("onnx/*", "openvino/*")
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
FETCHED = ".fetched"  # in a snapshot all of whose files are there


for library in ("huggingface_hub", "httpx", "httpx2"):  # their news of requests are none for a worker's log
    logging.getLogger(library).setLevel(logging.ERROR)


class ModelError(Exception):
    """The base model cannot be had; the message says from where and what to do."""

    exit_code = 78


def pin(model: str, revision: str | None = None) -> str:
    """The version of a model that a study is to train, as fetch() takes it. Asks the hub. Raises ModelError."""
    name = model.removeprefix(STATIC)
    if (local := _local(name)) is None:
        return _resolved(name, revision)
    if revision not in (None, local[1]):
        raise ModelError(f"model {name!r} is {local[1]}, not {revision}; leave model_revision out")
    return local[1]


@lru_cache(maxsize=8)
def fetch(model: str, pinned: str | None = None) -> Path:
    """The folder of the model's files, which are fetched unless they are here. Raises ModelError."""
    name = model.removeprefix(STATIC)
    if (local := _local(name)) is None:
        if pinned is not None and "@" not in pinned:
            raise ModelError(f"model {name!r} is not here; the study was made with {pinned}; bring that one")
        return _downloaded(name, pinned or _resolved(name, None))
    if pinned not in (None, local[1]):
        raise ModelError(f"model {name!r} is {local[1]} here, and the study was made with {pinned}; bring that one")
    return local[0]


def _local(name: str) -> tuple[Path, str] | None:
    """Folder and version of a model that needs no hub: a folder, or the folder `model` of an installed package."""
    if Path(name).is_absolute():
        if not any(Path(name).rglob("*.safetensors")):
            raise ModelError(f"model {name!r}: no folder with a model in safetensors")
        return Path(name), _digest(Path(name))
    module = name.replace("-", "_").replace(".", "_")
    package = importlib.util.find_spec(module) if module.isidentifier() and not module.startswith("_") else None
    folder = Path(package.origin).parent / "model" if package and package.origin else None
    if folder is None or not folder.is_dir():
        return None
    try:
        return folder, f"{name}=={version(name)}"
    except PackageNotFoundError:
        return folder, _digest(folder)


def _digest(folder: Path) -> str:
    paths = sorted({path for pattern in FILES for path in folder.rglob(pattern) if path.is_file()})
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _resolved(name: str, revision: str | None) -> str:
    """REPOSITORY@COMMIT. A name without an owner is one of sentence-transformers', or one of the hub's oldest."""
    from huggingface_hub import resolve_revision
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionResolutionError

    if not HUB_NAME.fullmatch(name):
        raise ModelError(f"model {name!r}: no such folder, and no name that a hub could have")
    for repository in [name] if "/" in name else [f"sentence-transformers/{name}", name]:
        try:
            return f"{repository}@{resolve_revision(repository, revision=revision).resolved}"
        except RepositoryNotFoundError:
            continue
        except (OSError, HFValidationError, RevisionResolutionError) as error:
            raise _unavailable(name, error) from None
    raise ModelError(f"model {name!r} is no folder, no installed package and not on the hub (a private one: HF_TOKEN)")


def _downloaded(name: str, pinned: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    repository, _, commit = pinned.partition("@")

    def snapshot(*, is_here: bool) -> Path:
        found = snapshot_download(
            repository,
            revision=commit,
            allow_patterns=list(FILES),
            ignore_patterns=list(UNUSED),
            local_files_only=is_here,
        )
        return Path(found)

    with suppress(LocalEntryNotFoundError):
        if (folder := snapshot(is_here=True)).joinpath(FETCHED).exists():
            return folder
    try:
        folder = snapshot(is_here=False)
    except (OSError, ValueError) as error:
        raise _unavailable(name, error) from None
    with suppress(OSError):  # a cache that may only be read was filled by somebody else
        folder.joinpath(FETCHED).touch()
    return folder


def _unavailable(name: str, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0].partition(": the Hub could not be reached")
    why = "the hub cannot be reached" if reason[1] else reason[0]
    return ModelError(f"model {name!r} cannot be fetched: {why.rstrip('.')}. Give a folder or an installed package")
