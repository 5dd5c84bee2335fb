"""Runs actions as processes of this machine, without any enclosure: kind ``local``."""

from stoker_exec_local.plugin import stoker_execution_strategies
from stoker_exec_local.strategy import LocalStrategy

__all__ = ["LocalStrategy", "stoker_execution_strategies"]
