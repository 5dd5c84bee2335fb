"""Runs actions as processes of this machine, without any enclosure: kind ``local``."""

from stoker_exec_local.plugin import Settings, open_strategy, stoker_execution_strategies
from stoker_exec_local.strategy import LocalStrategy, open_local

__all__ = [
    "LocalStrategy",
    "Settings",
    "open_local",
    "open_strategy",
    "stoker_execution_strategies",
]
