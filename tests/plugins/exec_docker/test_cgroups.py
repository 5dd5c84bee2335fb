"""Which groups are a container's, and which never are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stoker_exec_docker.cgroups import groups_of


def test_what_has_ended_or_is_among_others_is_never_taken_for_a_container() -> None:
    # Of one that has ended the system says that it is at the top: to kill what is there would
    # be to kill all.
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            groups_of(process.pid)
    with pytest.raises(ProcessLookupError):
        groups_of(os.getpid())
    with pytest.raises(ProcessLookupError):
        groups_of(process.pid)
