"""Whether an action can be given to a persistent worker, and to which."""

from __future__ import annotations

import posixpath
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, replace

from stoker.action import LoadedAction
from stoker.protos import remote_execution_pb2 as reapi
from stoker.storage.input_tree import InputTree
from stoker.workers.arguments import CommandLine, flag_file_path, split_arguments
from stoker.workers.key import Mode, WorkerKey
from stoker.workers.links import MAX_DEPTH
from stoker.workers.paths import find, find_file
from stoker.workers.properties import (
    UnclearProperties,
    Wishes,
    asks_for_worker,
    read_wishes,
    telling_processes_apart,
)
from stoker.workers.rules import find_rule
from stoker.workers.settings import WorkerRule, WorkerSettings
from stoker.workers.tools import Tools, ToolsBy, find_tools

PERSISTENT_WORKER_FLAG = "--persistent_worker"
DEFAULT_PROTOCOL = "proto"

_UNCONFIGURED = WorkerSettings()

_REMEMBERED_COMMANDS = 256
_REMEMBERED_BYTES = 64 * 2**10  # what one may have


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTerms:
    """How workers are kept that serve a plan. No part of the key: where rules for two mnemonics
    give unlike terms to what is one process to the key, those of the action at hand hold."""

    max_workers_per_key: int = 4
    max_workers_per_mnemonic: int | None = None
    max_requests: int | None = None
    max_requests_in_flight: int = 1
    """1 unless the worker is a multiplex one."""
    high_priority: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """How an action would be given to a worker."""

    key: WorkerKey
    protocol: str
    startup: tuple[str, ...]
    """What starts the worker, without the flag that makes it one and what follows that."""
    flag_files: tuple[str, ...]
    """The arguments of the request, before they are expanded."""
    tool_tree: InputTree
    """The part of the action's input tree that is the tool's, and links to it. Never a flag
    file that the command line names."""
    tools_by: ToolsBy = "marked"
    """Who said so."""
    name: str = ""
    """What its workers are counted and named by: the mnemonic, or what stands for it."""
    terms: WorkerTerms = WorkerTerms()
    cancellable: bool = False
    """Whether its workers heed cancel requests."""
    verbosity: int = 0

    @property
    def tools(self) -> frozenset[str]:
        """Paths of the tool's files, relative to the input root. To be spelt out takes time."""
        return frozenset(self.tool_tree.files)

    def within(self, surroundings: str) -> WorkerPlan:
        """The same for a strategy whose processes have these surroundings, as it says itself."""
        if surroundings == self.key.surroundings:
            return self
        return replace(self, key=replace(self.key, surroundings=surroundings))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """What an action says of a worker, whatever its inputs are."""

    command_line: CommandLine
    wishes: Wishes
    rule: WorkerRule
    protocol: str
    mode: Mode
    terms: WorkerTerms
    platform: tuple[tuple[str, tuple[str, ...]], ...]
    environment: tuple[tuple[str, str], ...]


class Planner:
    """Plans for the actions of one executor. It remembers commands: they are sent again with other
    inputs."""

    def __init__(
        self,
        protocols: Collection[str],
        settings: WorkerSettings = _UNCONFIGURED,
        *,
        keeps_containers: bool | None = None,
    ) -> None:
        """`protocols` are those on offer, and `keeps_containers` is the strategy's."""
        self._protocols = protocols
        self._settings = settings
        self._keeps_containers = keeps_containers
        self._readings: OrderedDict[Hashable, _Reading | str | None] = OrderedDict()

    def plan(self, action: LoadedAction, tree: InputTree) -> WorkerPlan | str | None:
        """See `plan_worker`."""
        reading = self._reading(action)
        if not isinstance(reading, _Reading):
            return reading
        if obstacle := _command_line_obstacle(reading.command_line, action, tree):
            return obstacle
        return _plan(action, tree, reading)

    def _reading(self, action: LoadedAction) -> _Reading | str | None:
        command = action.command.SerializeToString(deterministic=True)
        if len(command) > _REMEMBERED_BYTES:
            return self._read(action)
        key = (command, action.mnemonic, *action.platform.items())
        if key not in self._readings:
            self._readings[key] = self._read(action)
            if len(self._readings) > _REMEMBERED_COMMANDS:
                self._readings.popitem(last=False)
        self._readings.move_to_end(key)
        return self._readings[key]

    def _read(self, action: LoadedAction) -> _Reading | str | None:
        rule = find_rule(self._settings.rules, action.mnemonic, action.command.arguments[0])
        try:
            asked = asks_for_worker(action.platform)
            if asked is False or (asked is None and rule.use != "always"):
                return None
            wishes = read_wishes(action.platform)
        except UnclearProperties as error:
            return f"{error}"
        protocol = wishes.protocol or rule.protocol or DEFAULT_PROTOCOL
        obstacle = _obstacle(rule, protocol, self._protocols)
        if obstacle := obstacle or _container_obstacle(wishes, rule, self._keeps_containers):
            return obstacle
        command_line = split_arguments(action.command.arguments)
        if command_line is None:
            return "no argument names a flag file (@file or --flagfile=file) to send to a worker"
        mode = _mode(wishes, rule, self._settings)
        return _Reading(
            command_line=command_line,
            wishes=wishes,
            rule=rule,
            protocol=protocol,
            mode=mode,
            terms=_terms(rule, self._settings, mode),
            platform=telling_processes_apart(action.platform),
            environment=_environment(action.command),
        )


def plan_worker(
    action: LoadedAction,
    tree: InputTree,
    protocols: Collection[str],
    settings: WorkerSettings = _UNCONFIGURED,
    *,
    keeps_containers: bool | None = None,
) -> WorkerPlan | str | None:
    """The plan for `action`; None if no worker is asked for; or why it cannot have one.

    An action that cannot have one is to be run as any other, which is always right. `protocols`
    are those on offer, and `keeps_containers` is the strategy's. What the action says itself counts
    before what `settings` say of it. The surroundings are left empty: see `WorkerPlan.within`.

    It costs as much as those directories of `tree` have entries that no earlier tree has.
    """
    return Planner(protocols, settings, keeps_containers=keeps_containers).plan(action, tree)


def _obstacle(rule: WorkerRule, protocol: str, protocols: Collection[str]) -> str | None:
    if rule.use == "never":
        return "the server's configuration says never to use one for it"
    if protocol not in protocols:
        offered = ", ".join(sorted(protocols)) or "none"
        return f"worker protocol {protocol!r} is not offered; offered are: {offered}"
    return None


def _container_obstacle(
    wishes: Wishes, rule: WorkerRule, keeps_containers: bool | None
) -> str | None:
    """PWK-03: those who run the server decide, then those who sent the action."""
    if keeps_containers is False:
        return "the server's configuration says that containers are never kept"
    if wishes.keeps_container is False and not (rule.keep_containers or keeps_containers):
        return "container-image is set without dockerReuse=True, so its container may not be kept"
    return None


def _command_line_obstacle(
    command_line: CommandLine, action: LoadedAction, tree: InputTree
) -> str | None:
    if not command_line.startup:
        return "no argument is left to start a worker with, as all name flag files"
    if tree.root.depth > MAX_DEPTH:
        return f"the input root is more than {MAX_DEPTH} directories deep"
    for path in _expanded_files(command_line):
        if find_file(tree, action.command.working_directory, path) is None:
            return f"flag file {path!r} is not among the inputs"
    return None


def _plan(action: LoadedAction, tree: InputTree, reading: _Reading) -> WorkerPlan:
    rule, wishes = reading.rule, reading.wishes
    startup, flag_files = reading.command_line
    tools = _tools(action, tree, reading.command_line, rule)
    return WorkerPlan(
        key=WorkerKey(
            namespace=action.namespace,
            silo=wishes.silo,
            client_key=wishes.client_key,
            platform=reading.platform,
            argv=(*startup, PERSISTENT_WORKER_FLAG, *rule.extra_flags),
            environment=reading.environment,
            working_directory=action.command.working_directory,
            protocol=reading.protocol,
            mode=reading.mode,
            tools=tools.tree.root.digest.hash,
        ),
        protocol=reading.protocol,
        startup=startup,
        flag_files=flag_files,
        tool_tree=tools.tree,
        tools_by=tools.by,
        name=wishes.name or action.mnemonic or posixpath.basename(startup[0]),
        terms=reading.terms,
        cancellable=_first_said(wishes.cancellation, rule.cancellation),
        verbosity=rule.verbosity,
    )


def _tools(
    action: LoadedAction, tree: InputTree, command_line: CommandLine, rule: WorkerRule
) -> Tools:
    working_directory = action.command.working_directory
    places = (find(tree, working_directory, path) for path in _expanded_files(command_line))
    return find_tools(
        tree,
        working_directory,
        command_line.startup,
        patterns=rule.tools,
        never=[place.path for place in places if place is not None],
    )


def _expanded_files(command_line: CommandLine) -> Iterable[str]:
    return filter(None, map(flag_file_path, command_line.flag_files))


def _mode(wishes: Wishes, rule: WorkerRule, settings: WorkerSettings) -> Mode:
    """PWK-19: where several requests at a time cannot be, they come one after the other."""
    in_flight = rule.max_requests_in_flight or settings.max_requests_in_flight
    if in_flight == 1 or not _first_said(wishes.multiplex, rule.multiplex):
        return Mode.SINGLEPLEX
    if _first_said(wishes.sandboxing, rule.multiplex_sandboxing):
        return Mode.SANDBOXED_MULTIPLEX
    return Mode.MULTIPLEX


def _terms(rule: WorkerRule, settings: WorkerSettings, mode: Mode) -> WorkerTerms:
    in_flight = rule.max_requests_in_flight or settings.max_requests_in_flight
    return WorkerTerms(
        max_workers_per_key=rule.max_workers_per_key or settings.max_workers_per_key,
        max_workers_per_mnemonic=rule.max_workers_per_mnemonic or settings.max_workers_per_mnemonic,
        max_requests=rule.max_requests or settings.max_requests,
        max_requests_in_flight=1 if mode is Mode.SINGLEPLEX else in_flight,
        high_priority=rule.high_priority,
    )


def _first_said(*words: bool | None) -> bool:
    return next((word for word in words if word is not None), False)


def _environment(command: reapi.Command) -> tuple[tuple[str, str], ...]:
    variables = {variable.name: variable.value for variable in command.environment_variables}
    return tuple(sorted(variables.items()))
