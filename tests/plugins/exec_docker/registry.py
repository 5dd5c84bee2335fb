"""A registry of images on this machine: what an engine asks of one, and no more."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.docker_engine import busybox_tree, write_tree

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Registry:
    """Serves images by tag, and counts what was asked for."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.status = 0
        """An answer to all, in place of the right one."""
        self.gate = threading.Event()
        """Blobs are sent only once this is set."""
        self.gate.set()
        self.host = ""

    def publish(self, name: str, text: str) -> str:
        """Have ``name:tag`` stand for an image with a file ``/said``. Returns its name."""
        repository, _, tag = name.partition(":")
        layer = _layer(text)
        configuration = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
            }
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": self._blob("container.image.v1+json", configuration),
                "layers": [self._blob("image.rootfs.diff.tar", layer)],
            }
        ).encode()
        for reference in (tag, _digest(manifest)):
            self.manifests[f"/v2/{repository}/manifests/{reference}"] = manifest
        return f"{self.host}/{name}"

    def _blob(self, kind: str, data: bytes) -> dict[str, object]:
        self.blobs[_digest(data)] = data
        media_type = f"application/vnd.docker.{kind}"
        return {"mediaType": media_type, "size": len(data), "digest": _digest(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _layer(text: str) -> bytes:
    archive = io.BytesIO()
    write_tree(archive, busybox_tree())
    archive.seek(0)
    with tarfile.open(fileobj=archive, mode="a") as tar:
        entry = tarfile.TarInfo("said")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text.encode()))
    return archive.getvalue()


@contextmanager
def open_registry() -> Iterator[Registry]:
    registry = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(head=True)

        def do_GET(self) -> None:
            self.answer()

        def answer(self, head: bool = False) -> None:
            path = self.path.rstrip("/")
            registry.asked[path] += 1
            body, kind = registry.manifests.get(path), _MANIFEST
            if body is None and "/blobs/" in path:
                registry.gate.wait(60)
                body, kind = registry.blobs.get(path.rpartition("/")[2]), "application/octet-stream"
            if path == "/v2":
                body, kind = b"{}", "application/json"
            status = registry.status or (404 if body is None else 200)
            if status != 200:
                code = {401: "UNAUTHORIZED", 404: "MANIFEST_UNKNOWN"}.get(status, "UNAVAILABLE")
                said = {"code": code, "message": code.replace("_", " ").lower()}
                body, kind = json.dumps({"errors": [said]}).encode(), "application/json"
            assert body is not None
            self.send_response(status)
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", _digest(body))
            self.end_headers()
            if not head:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    registry.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield registry
    finally:
        registry.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
