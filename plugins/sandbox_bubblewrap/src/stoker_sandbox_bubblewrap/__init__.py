"""Encloses processes by bubblewrap: kind ``bubblewrap``."""

from stoker_sandbox_bubblewrap.plugin import stoker_sandboxes
from stoker_sandbox_bubblewrap.sandbox import Bubblewrap

__all__ = ["Bubblewrap", "stoker_sandboxes"]
