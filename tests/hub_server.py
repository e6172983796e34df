"""A stand-in for the Hugging Face Hub on this machine: what of its HTTP API pushing and loading a learner need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants, hf_api

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: {name: {"private": bool, "files": {path: bytes}}}; ``token`` is who may write."""

    def __init__(self, token: str = "hf_right"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.repos: dict[str, dict] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers the Hub client's requests."""

    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, content: object, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", getattr(self.server, "content_length", None) or str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.answer({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.repos.setdefault(
                name, {"private": bool(asked.get("private")) or asked.get("visibility") == "private", "files": {}}
            )
            return self.answer({"url": f"{self.server.url}/{name}"})
        repo = re.match(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/", path)
        if not repo or repo[1] not in self.server.repos:
            return self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
        if repo[2] == "preupload":
            files = [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            return self.answer({"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            if line["key"] == "file":
                self.server.repos[repo[1]]["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.server.url}/{repo[1]}/commit/{COMMIT}"
        return self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url, "pullRequestUrl": None})

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        repo = re.match(r"(?:/api/models)?/([^/]+/[^/]+)/(resolve/[^/]+|revision/[^/]+|tree/[^/]+)(?:/(.*))?$", path)
        bare = re.match(r"/api/models/([^/]+/[^/]+)$", path)
        found = self.server.repos.get((repo or bare or {1: None})[1])
        if found is None:
            return self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
        if bare or repo[2].startswith("revision"):
            if repo and repo[2] not in ("revision/main", f"revision/{COMMIT}"):
                return self.answer({"error": "not found"}, 404, X_Error_Code="RevisionNotFound")
            siblings = [{"rfilename": name} for name in found["files"]]
            facts = {"id": (repo or bare)[1], "private": False, "downloads": 0, "likes": 0, "tags": []}
            return self.answer({**facts, "sha": COMMIT, "siblings": siblings})
        if repo[2].startswith("tree"):
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in found["files"].items()
            ]
            return self.answer(rows)
        content = found["files"].get(repo[3])
        if content is None:
            return self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.answer(content, ETag=etag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the stand-in on a free port."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def visit(server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the Hub's client ask the stand-in, keep what it fetches in ``cache``, and not mind being offline."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the stand-in is on this machine
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    # older clients copy these when they are imported
    monkeypatch.setattr(hf_api, "ENDPOINT", server.url, raising=False)
    for name in ("_snapshot_download", "file_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}.HF_HUB_CACHE", str(cache), raising=False)
