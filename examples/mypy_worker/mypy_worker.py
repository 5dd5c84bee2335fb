"""mypy for build tools: one check and exit, or check after check as a persistent worker.

    python mypy_worker.py @PARAMS                 one check
    python mypy_worker.py --persistent_worker     a check for every request, in protobuf or JSON

PARAMS is a file of arguments, one a line, and a request of a worker holds the same arguments:
``--output FILE`` first, then whatever mypy takes: options, and the modules to check.

Exit code 0: mypy has checked, and FILE says what it found, be it nothing. 1: it could not check,
for the reason on stderr. So a module with mistakes is no failed action, and its report is cached.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

from mypy import api

from stoker.worker_kit import Request, serve

# A report must follow from what the action names: no settings from the user's home or from the
# folders above, no packages that happen to be installed beside mypy.
HERMETIC = ("--config-file=", "--no-site-packages", "--explicit-package-bases")
CHECKS_BETWEEN_COLLECTIONS = 8
NO_CACHE = ("--cache-dir", os.devnull)


def check(request: Request, *, cache: tuple[str, ...] = NO_CACHE) -> int:
    """Check as the request says and write the report. `cache` are mypy's options about its cache.

    What is printed is what the user is to read, apart from the report.
    """
    match request.arguments:
        case ["--output", output, *rest] if rest:
            pass
        case _:
            print("mypy_worker: wanted are: --output FILE, then arguments of mypy")
            return 1
    report, problem, status = api.run([*HERMETIC, *cache, *rest])
    if status == 2 and problem:
        # 2 alone is a report, too: of a syntax error, for example.
        print(problem, end="")
        return 1
    Path(output).write_text(report, encoding="utf-8")
    return 0


class WarmMypy:
    """What a worker keeps between checks: mypy's code, and the library's types in a cache."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._checks = 0

    def check(self, request: Request) -> int:
        """The outcome, and the report, of a process that starts from nothing. But sooner."""
        try:
            return check(request, cache=("--cache-dir", str(self._cache), "--no-sqlite-cache"))
        finally:
            self._forget_inputs()
            self._collect_now_and_then()

    def _forget_inputs(self) -> None:
        """Keep in the cache only what comes with mypy.

        It knows a file again by size and time. But executors give all inputs the same time, so
        that the next input of the same path and size would be taken for this one.
        """
        inputs = {entry.name.partition(".")[0] for entry in Path().iterdir()}
        for cached in self._cache.glob("*/*"):
            if cached.name.partition(".")[0] in inputs:
                shutil.rmtree(cached) if cached.is_dir() else cached.unlink()

    def _collect_now_and_then(self) -> None:
        """mypy leaves cycles of several megabytes a check. To take them away lasts nearly as long
        as a warm check, however many there are."""
        self._checks += 1
        if self._checks % CHECKS_BETWEEN_COLLECTIONS == 0:
            gc.collect()


def main() -> None:
    """Serve or check, as the command line says."""
    if "--persistent_worker" in sys.argv:
        with tempfile.TemporaryDirectory(prefix="mypy-cache-") as cache:
            serve(WarmMypy(Path(cache)).check)
    try:
        serve(check)
    except SystemExit as end:
        sys.stderr.flush()
        # As mypy's own command does: to take its objects apart lasts half as long as the check.
        os._exit(int(end.code or 0))


if __name__ == "__main__":
    main()
