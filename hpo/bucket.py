"""Checkpoints in a bucket of S3 or Google Cloud Storage, through Optuna's artifact stores."""

from __future__ import annotations

import io
import json
import logging
import shutil
import uuid
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import Boto3ArtifactStore, GCSArtifactStore
from optuna.artifacts._protocol import ArtifactStore

from hpo.errors import SetupError

logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells where it found credentials
INDEX = "index.json"  # written last: name and files of the folder


class Bucket:
    """Holds folders of files, each under a key. The libraries find their credentials by themselves."""

    def __init__(self, url: str) -> None:
        """Of `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`. Raises SetupError unless it can be read and written."""
        scheme, _, rest = url.partition("://")
        name, _, self._prefix = rest.strip("/").partition("/")
        try:
            self._store = _store(scheme, name)
            probe = f"{self._prefix}/probe-{uuid.uuid4()}".lstrip("/")
            self._store.write(probe, io.BytesIO(b"incident-hpo"))
            self._store.remove(probe)
        except ImportError:
            raise SetupError(f"checkpoints in {url} need the extra: pip install 'incident-hpo[buckets]'") from None
        except Exception as error:
            raise SetupError(f"checkpoints cannot be written to {url}: {in_a_line(error)}") from None

    def put(self, key: str, folder: Path) -> None:
        names = sorted(path.name for path in folder.iterdir())
        for name in names:
            with (folder / name).open("rb") as file:
                self._store.write(self._id(key, name), file)
        index = json.dumps({"name": folder.name, "files": names})
        self._store.write(self._id(key, INDEX), io.BytesIO(index.encode()))

    def get(self, key: str, root: Path) -> str:
        """The folder's name; it is under `root` now, if it was not before. Raises ArtifactNotFound."""
        index = self._index(key)
        name = Path(index["name"]).name  # no way out of `root`, whatever stands in the bucket
        if not (root / name).exists():
            partial = root / f".fetched-{uuid.uuid4()}"
            partial.mkdir(parents=True)
            try:
                self._download(key, index["files"], partial)
                partial.rename(root / name)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return name

    def remove(self, key: str) -> None:
        for name in [*self._index(key)["files"], INDEX]:
            self._store.remove(self._id(key, name))

    def _download(self, key: str, names: list[str], folder: Path) -> None:
        for name in names:
            with self._store.open_reader(self._id(key, name)) as source, (folder / Path(name).name).open("wb") as file:
                shutil.copyfileobj(source, file)

    def _index(self, key: str) -> dict[str, Any]:
        with self._store.open_reader(self._id(key, INDEX)) as file:
            index: dict[str, Any] = json.load(file)
            return index

    def _id(self, key: str, name: str) -> str:
        return f"{self._prefix}/{key}/{name}".lstrip("/")


def in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _store(scheme: str, name: str) -> ArtifactStore:
    if scheme == "s3":
        import boto3
        from botocore.config import Config

        patience = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 3})
        return Boto3ArtifactStore(name, boto3.client("s3", config=patience), avoid_buf_copy=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return GCSArtifactStore(name)
