"""Runs actions and persistent workers in containers: kind ``docker``."""

from stoker_exec_docker.plugin import open_strategy, stoker_execution_strategies
from stoker_exec_docker.settings import DockerSettings
from stoker_exec_docker.strategy import DockerStrategy

__all__ = [
    "DockerSettings",
    "DockerStrategy",
    "open_strategy",
    "stoker_execution_strategies",
]
