"""What is kept in the state directory: it outlives the server, or is too much for its memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from stoker.config import Configuration
from stoker.errors import ConfigurationError, StokerError, sole_cause
from stoker.history.records import History, open_history
from stoker.history.settings import HistorySettings
from stoker.log_streams.streams import LogStreams, open_log_streams
from stoker.scheduler.journal import Journal, is_journal, open_journal
from stoker.scheduler.journal_rows import Kept


class State(NamedTuple):
    """What is open while the server is."""

    journal: Journal | None
    """None where that is not wanted, or there is nothing to run."""
    kept: list[Kept]
    """The operations that were found in it."""
    history: History
    log_streams: LogStreams


@asynccontextmanager
async def open_state(configuration: Configuration) -> AsyncIterator[State]:
    """Open all of it.

    Raises ConfigurationError, also where another server has the same state_directory.
    """
    folder = configuration.path(configuration.server.state_directory)
    async with AsyncExitStack() as stack:
        journal, kept = await _open_journal(configuration, folder / "scheduler", stack)
        history = await stack.enter_async_context(
            _open_history(configuration, folder / "history.sqlite")
        )
        log_streams = await stack.enter_async_context(
            open_log_streams(folder / "log-streams", configuration.log_streams)
        )
        yield State(journal, kept, history, log_streams)


def _open_history(configuration: Configuration, path: Path) -> AbstractAsyncContextManager[History]:
    settings = configuration.history
    if not configuration.executors and not path.exists():
        # There will be nothing to record.
        settings = HistorySettings(enabled=False)
    return open_history(path, settings)


async def _open_journal(
    configuration: Configuration, folder: Path, stack: AsyncExitStack
) -> tuple[Journal | None, list[Kept]]:
    # Operations of a server that had executors are still asked for, if only to be told.
    needed = bool(configuration.executors) or is_journal(folder)
    if not configuration.scheduler.journal or not needed:
        return None, []
    try:
        return await stack.enter_async_context(open_journal(folder, configuration.scheduler))
    except Exception as error:
        cause = sole_cause(error)
        if isinstance(cause, StokerError | OSError):
            reason = f"[scheduler] the journal cannot be opened: {cause}"
            raise ConfigurationError([reason]) from error
        raise
