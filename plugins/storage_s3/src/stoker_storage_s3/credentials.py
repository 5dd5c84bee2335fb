"""Credentials from files that settings name. No message from here holds what a file says."""

from __future__ import annotations

import configparser
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from stoker.spi import ConfigurationError

if TYPE_CHECKING:
    from obstore.store import S3Credential

# Often enough for a rotated key, seldom enough to cost nothing.
_LIFE = timedelta(minutes=10)


class CredentialsFile:
    """The section `profile` of a file in the format of ``~/.aws/credentials``.

    Calling it reads the file. Raises ConfigurationError.
    """

    def __init__(self, path: Path, profile: str) -> None:
        self._path = path
        self._profile = profile

    def __call__(self) -> S3Credential:
        section = self._section()
        return {
            "access_key_id": self._value(section, "aws_access_key_id"),
            "secret_access_key": self._value(section, "aws_secret_access_key"),
            "token": section.get("aws_session_token"),
            "expires_at": datetime.now(UTC) + _LIFE,
        }

    def _section(self) -> configparser.SectionProxy:
        # Secrets may hold percent signs, which would otherwise be interpolated.
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(read_text(self._path))
        except configparser.Error:
            # Not its cause either: a parser's message quotes the line it does not like.
            raise ConfigurationError([f"{self._path} is not a file of credentials"]) from None
        if not parser.has_section(self._profile):
            raise ConfigurationError([f"{self._path} has no section [{self._profile}]"])
        return parser[self._profile]

    def _value(self, section: configparser.SectionProxy, key: str) -> str:
        if not (value := section.get(key)):
            raise ConfigurationError([f"{self._path}: section [{self._profile}] lacks {key}"])
        return value


def read_text(path: Path) -> str:
    """What is in `path`, without space around it. Raises ConfigurationError."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError([f"{path} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError:
        raise ConfigurationError([f"{path} is not a text file"]) from None
