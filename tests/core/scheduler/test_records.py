"""What is known of operations, and for how long (OPS-13, OPS-19)."""

from __future__ import annotations

import pytest

from stoker.action import Outcome
from stoker.errors import InputsMissing, OperationNotFound
from stoker.protos import remote_execution_pb2 as reapi
from stoker.scheduler.operation import Operation
from stoker.scheduler.records import Records
from stoker.scheduler.task import Stage

from .test_scheduler import make_action


def end(records: Records, operation: Operation, now: float, weight: int = 0) -> None:
    result = reapi.ActionResult(stdout_raw=bytes(weight))
    operation.stage, operation.outcome = Stage.COMPLETED, Outcome(result=result)
    records.retain(operation, now)


def test_what_is_forgotten_is_known_to_nobody_however_it_goes_on() -> None:
    forgotten: list[str] = []
    records = Records(retention_seconds=10, max_retained_bytes=100_000, forgotten=forgotten.append)
    running, done = (records.add(make_action(name)) for name in "ab")
    end(records, done, 0, weight=90_000)
    for operation in (running, done):
        records.forget(operation)
        with pytest.raises(OperationNotFound):
            records.find(operation.name, "")
    assert forgotten == [running.name, done.name]
    # What was forgotten weighs nothing any more, and ends like any other.
    end(records, running, 1, weight=90_000)
    kept = records.add(make_action("c"))
    end(records, kept, 2, weight=90_000)
    records.drop_expired(3)
    assert records.after(0) == [kept]
    records.drop_expired(13)
    assert (len(records), forgotten[2:]) == (0, [kept.name])


def test_numbers_grow_and_tell_what_came_after() -> None:
    records = Records(retention_seconds=10, max_retained_bytes=10**6)
    operations = [records.add(make_action(str(i))) for i in range(1000)]
    numbers = [operation.number for operation in operations]
    assert numbers == sorted(set(numbers))
    records.forget(operations[500])
    assert records.after(numbers[500]) == operations[501:]
    assert records.after(numbers[499]) == operations[501:]
    assert records.after(numbers[-1]) == []


def test_errors_weigh_what_they_say() -> None:  # OPS-13
    records = Records(retention_seconds=10, max_retained_bytes=10**6)
    digests = [make_action(str(i)).digest for i in range(2000)]
    operations = [records.add(make_action(str(i))) for i in range(20)]
    for operation in operations:
        operation.stage = Stage.COMPLETED
        operation.outcome = Outcome(error=InputsMissing(digests), message="m" * 1000)
        records.retain(operation, 0)
    records.drop_expired(1)
    # Each has two thousand digests, of a hundred bytes and more.
    assert 1 <= len(records) <= 5
    assert records.after(0) == operations[-len(records) :]
