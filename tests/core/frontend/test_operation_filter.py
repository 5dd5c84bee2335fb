"""What filters of ListOperations mean, and what is said of those that mean nothing (OPS-20)."""

from __future__ import annotations

import pytest

from stoker.action import Outcome
from stoker.digest import SHA256
from stoker.errors import InvalidRequest
from stoker.frontend.operation_filter import OperationFilter
from stoker.protos import remote_execution_pb2 as reapi
from stoker.scheduler.operation import Operation
from stoker.scheduler.task import Stage

DIGEST = SHA256.digest(b"action")
RUNNING = Operation(
    name="operations/1",
    number=1,
    namespace="",
    principal="alice@example.org",
    action_digest=DIGEST,
    mnemonic="Javac",
    target='//a:b "c"\\',
    invocation="AND",
    stage=Stage.EXECUTING,
    run=reapi.ExecutedActionMetadata(worker="fast"),
)
DONE = Operation(
    name="operations/2",
    number=2,
    namespace="",
    action_digest=SHA256.digest(b"other"),
    stage=Stage.COMPLETED,
    outcome=Outcome(
        result=reapi.ActionResult(
            execution_metadata=reapi.ExecutedActionMetadata(worker="slow-1.example")
        )
    ),
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {"running", "done"}),
        (" ", {"running", "done"}),
        ("stage=EXECUTING", {"running"}),
        ("stage != executing", {"done"}),
        ("done = true", {"done"}),
        ("done=false", {"running"}),
        ("done != true", {"running"}),
        (f"action = {DIGEST.hash[:8]}", {"running"}),
        (f"action = {DIGEST}", {"running"}),
        (f"action = {DIGEST}0", set()),
        (f'action != "{DIGEST.hash}"', {"done"}),
        ("mnemonic = Javac", {"running"}),
        ("mnemonic = javac", set()),
        ('mnemonic = ""', {"done"}),
        ('target = "//a:b \\"c\\"\\\\"', {"running"}),
        ("target != //a:b", {"running", "done"}),
        ("invocation = AND", {"running"}),
        ("invocation = AND AND stage = QUEUED", set()),
        ("executor = fast", {"running"}),
        ("executor = slow-1.example", {"done"}),
        ("principal = alice@example.org AND done=false AND  executor != slow", {"running"}),
        ("done=true AND stage=EXECUTING", set()),
    ],
)
def test_which_operations_are_wanted(text: str, wanted: set[str]) -> None:
    filter_ = OperationFilter(text)
    found = {"running": RUNNING, "done": DONE}
    assert {name for name, operation in found.items() if filter_.matches(operation)} == wanted


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("color = red", "there is no field 'color'; there are action, done, executor, invocation,"),
        ("stage = RUNNING", "'RUNNING' is no stage; stages are QUEUED, EXECUTING, COMPLETED"),
        ("done = maybe", "done is true or false, not 'maybe'"),
        ("action = xyz", "'xyz' is no action; write HASH/SIZE, or the first digits of HASH"),
        ("done", "cannot be read from 'done' on: write comparisons as"),
        ("done = true AND", "cannot be read from 'AND' on"),
        ("done = true AND ", "cannot be read at its end"),
        ("done = true OR done = false", "cannot be read from 'OR done = false' on"),
        ("done = true done = false", "cannot be read from 'done = false' on"),
        ("done = true and done = false", "cannot be read from 'and done"),
        ("NOT done = true", "cannot be read from 'NOT done = true' on"),
        ("(done = true)", "cannot be read from '(done = true)' on"),
        ("done > true", "cannot be read from 'done > true' on"),
        ("mnemonic : Javac", "cannot be read from 'mnemonic : Javac' on"),
        ("mnemonic = Jav*", "cannot be read from '*' on"),
        ('mnemonic = "Javac', "cannot be read from"),
        ("= true", "cannot be read from '= true' on"),
    ],
)
def test_what_is_wrong_is_told_with_what_is_allowed(text: str, told: str) -> None:
    with pytest.raises(InvalidRequest) as info:
        OperationFilter(text)
    assert told in str(info.value)


@pytest.mark.parametrize("length", [33, 1000, 200_000])
def test_a_filter_that_would_take_the_server_from_others_is_refused(length: int) -> None:
    assert OperationFilter(" AND ".join(["done=false"] * 32)).matches(RUNNING)
    with pytest.raises(InvalidRequest, match=r"and no more|characters are too long"):
        OperationFilter(" AND ".join(["done=false"] * length))
    with pytest.raises(InvalidRequest, match=r"cannot be read|characters are too long"):
        OperationFilter("done = " + '"\\' * length)
