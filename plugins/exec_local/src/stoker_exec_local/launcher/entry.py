"""Runs the launcher: ``python -I -S -E entry.py DESCRIPTOR``, the descriptor of its socket."""

from __future__ import annotations

import os
import sys
from types import ModuleType


def _stand_in_for_the_package() -> None:
    """Let this package be imported under its name, without what its parent would import."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  # no pathlib here
    package = ModuleType("stoker_exec_local")
    package.__path__ = [os.path.dirname(here)]  # noqa: PTH120
    sys.modules["stoker_exec_local"] = package


if __name__ == "__main__":
    _stand_in_for_the_package()
    from stoker_exec_local.launcher.service import serve

    serve(int(sys.argv[1]))
