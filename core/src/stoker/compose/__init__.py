"""The composition root: a configuration and what is installed become a running server."""

from stoker.compose.listeners import MAX_MESSAGE_BYTES
from stoker.compose.server import RunningServer, open_server
from stoker.compose.services import Services, Trial, open_services, try_services

__all__ = [
    # a server
    "open_server",
    "RunningServer",
    "MAX_MESSAGE_BYTES",
    # its services alone
    "open_services",
    "try_services",
    "Services",
    "Trial",
]
