"""Looking over a pool: what it tells of itself at one moment. Pure."""

from __future__ import annotations

from collections.abc import Collection

from stoker.workers.history import History, KeyHistory
from stoker.workers.making import FolderT
from stoker.workers.places import Places
from stoker.workers.report import KeyReport, PoolReport, State, WorkerReport
from stoker.workers.resident import Resident
from stoker.workers.settings import WorkerSettings
from stoker.workers.worker import NOT_STARTED


def survey(
    settings: WorkerSettings,
    places: Places[Resident[FolderT]],
    history: History,
    residents: Collection[Resident[FolderT]],
    now: float,
) -> PoolReport:
    """The report of a pool that consists of these."""
    rows: dict[object, list[WorkerReport]] = {}
    for resident in residents:
        rows.setdefault(resident.worker.key, []).append(_worker_report(resident, places, now))
    keys = [_key_report(known, places, rows.get(known.key, [])) for known in history.known()]
    return PoolReport(
        max_workers=settings.max_workers,
        places=places.held,
        waiting=places.waiting,
        memory_bytes=places.memory_bytes,
        max_memory_bytes=settings.max_memory_bytes,
        hits=history.hits,
        misses=dict(history.misses),
        ended=dict(history.ended),
        keys=keys,
    )


def _key_report(
    known: KeyHistory, places: Places[Resident[FolderT]], workers: list[WorkerReport]
) -> KeyReport:
    return KeyReport(
        key=known.key,
        mnemonic=known.name,
        workers=workers,
        waiting=places.waiting_for(known.key),
        hits=known.hits,
        misses=dict(known.misses),
        nearest_key_differs_in=known.nearest_key_differs_in,
        last_error=known.last_error,
    )


def _worker_report(
    resident: Resident[FolderT], places: Places[Resident[FolderT]], now: float
) -> WorkerReport:
    worker, place = resident.worker, places.place_of(resident)
    is_idle = places.is_idle(resident)
    return WorkerReport(
        name=worker.name,
        process=worker.process_name,
        state=_state(resident, places),
        in_flight=place.leases if place is not None else 0,
        served=worker.served,
        memory_bytes=place.memory_bytes if place is not None else None,
        age_seconds=now - resident.made_at,
        idle_seconds=now - resident.idle_since if is_idle else 0.0,
        log=str(worker.log),
        tools_by=worker.plan.tools_by,
    )


def _state(resident: Resident[FolderT], places: Places[Resident[FolderT]]) -> State:
    place = places.place_of(resident)
    if place is None or place.ending is not None:
        return "ending"
    if places.is_idle(resident):
        return "idle"
    if resident.worker.recovering:
        return "recovering"
    return "starting" if resident.worker.process_name == NOT_STARTED else "busy"
