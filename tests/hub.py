"""A hub of one model on this machine, as huggingface_hub sees it: commits, files, and a list of what was asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORY = "desk/tickets"
ASKED = re.compile(
    rf"/api/models/{REPOSITORY}(?P<info>/revision/\w+)?$"
    rf"|/api/models/{REPOSITORY}/tree/(?P<tree>\w+)"
    rf"|/{REPOSITORY}/resolve/(?P<commit>\w+)/(?P<path>.+)"
)


@dataclass
class Hub:
    """`commits`: the folder of each; main is the last."""

    endpoint: str
    commits: dict[str, Path] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def environment(self, home: Path) -> dict[str, str]:
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        found = ASKED.match(path.partition("?")[0])
        if found is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if found["path"] is None:
            return 200, {"Content-Type": "application/json"}, json.dumps(self.told(found)).encode()
        file = self.commits[found["commit"]] / found["path"]
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        content = file.read_bytes()
        return 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": found["commit"]}, content

    def told(self, found: re.Match[str]) -> object:
        main = list(self.commits)[-1]
        commit = found["tree"] or (found["info"] or f"/revision/{main}").removeprefix("/revision/").replace(
            "main", main
        )
        folder = self.commits[commit]
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        if found["tree"]:
            return [
                {"type": "file", "path": name, "size": (folder / name).stat().st_size, "oid": name} for name in names
            ]
        return {"id": REPOSITORY, "sha": commit, "siblings": [{"rfilename": name} for name in names]}


@contextmanager
def serve() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append(self.path)
            status, headers, content = hub.answer(self.path)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()
