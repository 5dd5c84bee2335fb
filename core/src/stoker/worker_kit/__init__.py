"""Turns a Python function into a persistent worker; for authors of tools.

    from stoker.worker_kit import Request, serve

    def compile(request: Request) -> int:
        ...

    if __name__ == "__main__":
        serve(compile)

The program is then both: an ordinary command, and with ``--persistent_worker`` a worker that speaks
Bazel's protocol, in protobuf and in JSON. See docs/guides/writing-a-worker.md.

Nothing of the server is imported: the start of a worker is time that somebody waits for.
"""

from stoker.worker_kit.command_line import serve
from stoker.worker_kit.request import Cancelled, Request

__all__ = ["Cancelled", "Request", "serve"]
