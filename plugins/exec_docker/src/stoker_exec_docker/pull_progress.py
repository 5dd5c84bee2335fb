"""How far the fetching of an image has come, for the people who wait for it."""

from __future__ import annotations

from collections.abc import Mapping

from stoker_exec_docker.engine import Facts


class PullProgress:
    """Noted in one thread, read in another: each note is one assignment."""

    def __init__(self) -> None:
        self._layers: Mapping[str, tuple[int, int]] = {}
        self._status = "asking the registry"

    def note(self, step: Facts) -> None:
        """Take one of the steps that the engine tells of."""
        self._status = str(step.get("status") or self._status)
        detail = step.get("progressDetail") or {}
        # Layers are unpacked after they have come, and counted anew: only what comes is told.
        if self._status == "Downloading" and isinstance(detail.get("current"), int):
            layer = (detail["current"], int(detail.get("total") or 0))
            self._layers = {**self._layers, str(step.get("id", "")): layer}

    def facts(self, image: str) -> dict[str, str | float]:
        """As they are told to clients, in auxiliary_metadata."""
        layers = tuple(self._layers.values())
        return {
            "pulling_image": image,
            "pull_status": self._status,
            "pulled_bytes": sum(current for current, _ in layers),
            "pulled_bytes_known": sum(total for _, total in layers),
        }
