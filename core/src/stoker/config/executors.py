"""What single keys of ``[executors.NAME]`` cannot tell."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stoker.config.structs import ExecutorTable
from stoker.resources import RESOURCE_PROPERTIES
from stoker.scheduler.matching import NUMERIC_KINDS, Matching, declared_number
from stoker.scheduler.settings import SchedulerSettings
from stoker.tables import nearest, quoted
from stoker.workers.rules import rules_never_reached

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def executor_problems(name: str, settings: ExecutorTable) -> Iterator[str]:
    """What is wrong with an executor, whatever else is configured."""
    table = f"executors.{quoted(name)}"
    if not _FOLDER_NAME.fullmatch(name):
        yield (
            f"[{table}]: an executor's name is also a folder's; "
            f"use letters, digits, '-', '_' and '.', and begin with a letter or digit"
        )
    yield from _limit_problems(table, settings)
    yield from _rule_problems(table, settings)
    for amount in sorted(RESOURCE_PROPERTIES & settings.properties.keys()):
        yield (
            f"[{table}] properties: {amount!r} asks for an amount and is not matched as a "
            f"value; say what there is by the keys cpus and memory_bytes of [{table}]"
        )


def _limit_problems(table: str, settings: ExecutorTable) -> Iterator[str]:
    limits = settings.limits
    if limits.default_timeout_seconds > limits.maximum_timeout_seconds:
        yield f"[{table}.limits] default_timeout_seconds is above maximum_timeout_seconds"
    if (limits.default_memory_bytes or 0) > settings.memory_bytes:
        yield (
            f"[{table}.limits] default_memory_bytes is above the executor's memory_bytes, "
            f"{settings.memory_bytes}"
        )


def _rule_problems(table: str, settings: ExecutorTable) -> Iterator[str]:
    rules, offered = settings.workers.rules, settings.worker_protocols
    for position, earlier in rules_never_reached(rules):
        yield (
            f"[{table}.workers.rules[{position}]] never counts: rules[{earlier}] fits all "
            f"that it fits, and the first rule that fits counts alone"
        )
    for position, rule in enumerate(rules):
        if rule.protocol is not None and offered is not None and rule.protocol not in offered:
            yield (
                f"[{table}.workers.rules[{position}]] protocol: {rule.protocol!r} is not among "
                f"the worker_protocols of [{table}]{nearest(rule.protocol, offered)}"
            )


def property_problems(
    scheduler: SchedulerSettings, executors: Mapping[str, ExecutorTable]
) -> Iterator[str]:
    """Where ``[scheduler.properties]`` and the properties of executors do not go together."""
    for name in sorted(RESOURCE_PROPERTIES & scheduler.properties.keys()):
        yield (
            f"[scheduler.properties] {name!r} asks for processors or memory, and is always consumed"
        )
    for executor, settings in executors.items():
        yield from _number_problems(executor, settings, scheduler.matching)


def _number_problems(executor: str, settings: ExecutorTable, matching: Matching) -> Iterator[str]:
    for name, values in settings.properties.items():
        try:
            if matching.kind(name) in NUMERIC_KINDS:
                declared_number((values,) if isinstance(values, str) else values)
        except ValueError:
            yield (
                f"[executors.{quoted(executor)}] properties: {name} is "
                f"{matching.kind(name)!r} by [scheduler.properties] and needs a number such "
                f"as '2' or '0.5', got {values!r}"
            )
