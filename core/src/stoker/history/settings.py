"""How much of the past is kept."""

from __future__ import annotations

from typing import Annotated

import msgspec

from stoker.spi import Settings

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class HistorySettings(Settings, frozen=True):
    """``[history]``."""

    enabled: bool = True
    """Whether runs are recorded, in ``history.sqlite`` below the state directory. Without, only
    what is queued or runs now can be explained."""
    max_runs: _Positive = 50_000
    """How many runs are kept, about 2 kB each; the oldest go first."""
    max_age_days: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """Older ones go, too."""
