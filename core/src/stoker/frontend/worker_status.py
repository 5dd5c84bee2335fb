"""What a pool of persistent workers tells of itself, as messages of the Admin service."""

from __future__ import annotations

from stoker.protos import admin_pb2 as admin
from stoker.workers.report import KeyReport, PoolReport, WorkerReport


def executor_workers(executor: str, report: PoolReport) -> admin.ExecutorWorkers:
    """The workers of one executor."""
    return admin.ExecutorWorkers(
        executor=executor,
        max_workers=report.max_workers,
        places=report.places,
        waiting=report.waiting,
        memory_bytes=report.memory_bytes,
        max_memory_bytes=report.max_memory_bytes,
        hits=report.hits,
        misses=report.misses,
        ended=report.ended,
        keys=map(_key, report.keys),
    )


def _key(report: KeyReport) -> admin.WorkerKeyStatus:
    key = report.key
    return admin.WorkerKeyStatus(
        mnemonic=report.mnemonic,
        instance_name=key.namespace,
        silo=key.silo,
        protocol=key.protocol,
        mode=key.mode.value,
        argv=key.argv,
        working_directory=key.working_directory,
        tools=key.tools,
        surroundings=key.surroundings,
        waiting=report.waiting,
        hits=report.hits,
        misses=report.misses,
        nearest_key_differs_in=report.nearest_key_differs_in,
        last_error=report.last_error,
        workers=map(_worker, report.workers),
    )


def _worker(report: WorkerReport) -> admin.WorkerStatus:
    return admin.WorkerStatus(
        name=report.name,
        process=report.process,
        state=report.state,
        in_flight=report.in_flight,
        served=report.served,
        memory_bytes=report.memory_bytes,
        age_seconds=report.age_seconds,
        idle_seconds=report.idle_seconds,
        log=report.log,
        tools_by=report.tools_by,
    )
