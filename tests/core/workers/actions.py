"""Actions and trees for tests of what is understood of them. Nothing runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stoker.action import LoadedAction
from stoker.digest import SHA256
from stoker.protos import remote_execution_pb2 as reapi
from stoker.storage.input_tree import InputFile, InputTree
from stoker.workers.plan import WorkerPlan, plan_worker
from stoker.workers.settings import WorkerSettings

from .trees import tree_of
from .workshop import load

PROTOCOLS = ("proto", "json")
ASKED = {"persistentWorkerKey": "abc"}


def an_action(
    arguments: Sequence[str] = ("bin/tool", "@flags"),
    platform: Mapping[str, str] = ASKED,
    working_directory: str = "",
) -> LoadedAction:
    """An action of the mnemonic ``Tool/Run`` that asks for a worker, unless told otherwise."""
    command = reapi.Command(arguments=arguments, working_directory=working_directory)
    return load(command, platform)


def a_tree(
    *paths: str, tools: Sequence[str] = (), symlinks: Mapping[str, str] | None = None
) -> InputTree:
    """A tree in which each file holds its own path."""
    files = {
        path: InputFile(path, SHA256.digest(path.encode()), False, path in tools, None, None)
        for path in sorted({*paths, *tools})
    }
    return tree_of(files, symlinks)


TREE = a_tree("flags", "src/a", tools=["bin/tool"])


def planned(
    action: LoadedAction, tree: InputTree = TREE, settings: WorkerSettings | None = None
) -> WorkerPlan:
    """The plan for `action`, which has one."""
    plan = plan_worker(action, tree, PROTOCOLS, settings or WorkerSettings())
    assert isinstance(plan, WorkerPlan), plan
    return plan


def refused(
    action: LoadedAction, tree: InputTree = TREE, settings: WorkerSettings | None = None
) -> str:
    """Why `action` has none although it is wanted."""
    reason = plan_worker(action, tree, PROTOCOLS, settings or WorkerSettings())
    assert isinstance(reason, str), reason
    return reason
