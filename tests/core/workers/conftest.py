"""The workshop as a fixture."""

from __future__ import annotations

from pathlib import Path

import pytest

from .workshop import Workshop


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Where actions are made and run."""
    return Workshop(tmp_path)
