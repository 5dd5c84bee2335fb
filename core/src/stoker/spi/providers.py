"""What a plugin offers: kinds of services, each with its settings and a way to open it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, cast

import msgspec
import pluggy

from stoker.errors import ConfigurationError
from stoker.spi.action_cache import ActionCache
from stoker.spi.blob_store import BlobStore

hookimpl = pluggy.HookimplMarker("stoker")
"""Marks the hooks of a plugin; see :mod:`stoker.hookspecs`."""

Service_co = TypeVar("Service_co", covariant=True)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Root of every settings struct. A field is a TOML key; one without a default is required.

    Subclasses repeat ``frozen=True``, which type checkers ask for.
    """


BlobStoreName = Annotated[str, msgspec.Meta(extra={"refers_to": "blob_stores"})]
"""The type of a setting that names a ``[blob_stores.NAME]`` table. It is open before its user."""

ActionCacheName = Annotated[str, msgspec.Meta(extra={"refers_to": "action_caches"})]
"""The type of a setting that names an ``[action_caches.NAME]`` table."""


def resolve_path(folder: Path, text: str) -> Path:
    """The path that a setting means: ``~`` is a home, and relative ones begin at `folder`.

    Raises ConfigurationError for what cannot be a path.
    """
    if not text or "\0" in text:
        raise ConfigurationError([f"{text!r} cannot be a path"])
    try:
        return folder / Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigurationError([f"{text!r} cannot be a path: {error}"]) from error


class Context:
    """What a provider may know of the server that opens it."""

    def __init__(
        self, name: str, folder: Path, services: Mapping[str, Mapping[str, object]]
    ) -> None:
        self.name = name
        """The name of the TOML table, for messages."""
        self._folder = folder
        self._services = services

    def path(self, text: str) -> Path:
        """The path that a setting means: relative ones begin at the TOML file's folder."""
        return resolve_path(self._folder, text)

    def blob_store(self, name: str) -> BlobStore:
        """The store that a setting of type `BlobStoreName` names."""
        return cast(BlobStore, self._services["blob_stores"][name])

    def action_cache(self, name: str) -> ActionCache:
        """The cache that a setting of type `ActionCacheName` names."""
        return cast(ActionCache, self._services["action_caches"][name])


@dataclass(frozen=True, slots=True)
class Provider(Generic[Service_co]):
    """One kind of a service: its settings, and how to open it.

    `open` is entered once for each TOML table of the kind and left when the server stops. It may
    hold a nursery for background work. It raises ConfigurationError for settings that cannot work
    here, and Unavailable for what may work later.
    """

    settings: type[Settings]
    open: Callable[[Any, Context], AbstractAsyncContextManager[Service_co]]
    summary: str = ""
    """A few words for ``stoker plugins``."""
