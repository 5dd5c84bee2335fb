"""What clients and servers say does nothing to a terminal."""

from __future__ import annotations

import pytest

from stoker.cli import _exit_code
from stoker.cli.ac import _line
from stoker.cli.printable import printable, printable_lines
from stoker.cli.tail import _ending
from stoker.protos import admin_pb2 as admin
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import RpcError, StatusCode

HOSTILE = "\x1b]0;title\x07\x1b[31mred\u202e\r"


def is_harmless(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def test_escape_sequences_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(f"a{HOSTILE}\nb") == r"a\x1b]0;title\x07\x1b[31mred\u202e\r ⏎ b"
    assert printable_lines("a\x07\nb") == "a\\x07\nb"
    assert _exit_code(RpcError(StatusCode.INTERNAL, f"{HOSTILE}\nsecond line")) == 1
    told = capsys.readouterr().err
    assert is_harmless(told)
    assert told.endswith("red\\u202e\\r\nsecond line\n")

    response = reapi.ExecuteResponse()
    response.status.code, response.status.message = 3, f"/bin/{HOSTILE}: not found"
    assert is_harmless(_ending("operations/1", response))

    result = admin.ListedResult(instance_name="team")
    result.provenance.tool_name = HOSTILE
    assert is_harmless(_line(result))
