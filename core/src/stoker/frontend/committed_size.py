"""Which committed_size ends a compressed upload, as clients read the field differently (BSW-15).

Source: remote-apis issues 212 and 213; bazel pull request 30000.
"""

from __future__ import annotations

from stoker.frontend.request_metadata import request_metadata
from stoker.rpc import ServerCall

PRESENT = -1
"""What REAPI wants for a compressed upload of a blob that was there already (BSW-11)."""

_COUNT_SENT_BYTES = frozenset({"bazel", "buck2"})
"""Names of tools that compare the answer with the compressed bytes that they have sent. All
others, as Siso and the SDK of remote-apis, take nothing but the size of the blob, or any number."""


def committed_size(call: ServerCall, *, sent_bytes: int, size_bytes: int) -> int:
    """The number that the client of `call` takes for success, of a blob that is complete now."""
    tool = request_metadata(call).tool_details.tool_name.lower()
    return sent_bytes if tool in _COUNT_SENT_BYTES else size_bytes
