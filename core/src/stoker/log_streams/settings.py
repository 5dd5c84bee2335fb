"""What log streams may take."""

from __future__ import annotations

from typing import Annotated

import msgspec

from stoker.resources import ByteCount
from stoker.spi import Settings


class LogStreamSettings(Settings, frozen=True):
    """``[log_streams]``: of those that clients create. What actions print has limits of its own."""

    max_streams: Annotated[int, msgspec.Meta(ge=0)] = 128
    """How many there may be at once; more are refused with RESOURCE_EXHAUSTED. 0 for none."""
    max_stream_bytes: ByteCount = 64 * 2**20
    """How long one may grow; a text such as "64MiB" is taken too."""
    idle_seconds: Annotated[float, msgspec.Meta(gt=0)] = 3600.0
    """One that nobody has written to, or begun or ended to read, for this time is forgotten."""
