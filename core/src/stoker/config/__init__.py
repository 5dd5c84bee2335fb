"""The configuration: one TOML file to frozen structs.

Everything that can be known without opening anything is checked here, all of it at once.
"""

from __future__ import annotations

from stoker.config.check import check_document
from stoker.config.documents import default_document, effective_document, read_toml
from stoker.config.services import SERVICE_TABLES
from stoker.config.structs import (
    Configuration,
    ExecutorTable,
    InstanceTable,
    LogTable,
    ServerTable,
    Service,
    ServiceName,
)

__all__ = [
    "Configuration",
    "ServerTable",
    "LogTable",
    "ExecutorTable",
    "InstanceTable",
    "Service",
    "ServiceName",
    "SERVICE_TABLES",
    # documents
    "read_toml",
    "default_document",
    "check_document",
    "effective_document",
]
