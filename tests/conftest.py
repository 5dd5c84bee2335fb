"""What all tests have in common."""

from __future__ import annotations

import pytest

from .conformance import Report

pytest.register_assert_rewrite("stoker.testing")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--conformance",
        action="store_true",
        help="after the run, tell every conformance check by number",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--conformance"):
        config.pluginmanager.register(Report())
