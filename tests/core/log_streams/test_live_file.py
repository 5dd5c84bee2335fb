"""What is opened in place of a process's stdout is that, or nothing (SEC-05)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stoker.log_streams.names import parse_log_name
from stoker.log_streams.run_output import LiveFile


def secret_of(path: Path) -> Path:
    secret = path.with_name("secret")
    secret.write_text("secret")
    return secret


REPLACEMENTS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "link": lambda path: path.symlink_to(secret_of(path)),
    "another name": lambda path: path.hardlink_to(secret_of(path)),
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("replace", REPLACEMENTS.values(), ids=REPLACEMENTS)
def test_what_a_process_puts_in_place_of_its_stdout_is_not_read(
    tmp_path: Path, replace: Callable[[Path], object]
) -> None:
    path = tmp_path / "stdout"
    path.write_text("output")
    status = path.stat()
    file = LiveFile(str(path), status.st_dev, status.st_ino)
    descriptor = file.open()
    assert descriptor is not None
    assert os.read(descriptor, 99) == b"output"
    path.unlink()
    replace(path)
    assert file.open() is None
    os.close(descriptor)


@pytest.mark.parametrize(
    ("name", "instance", "token"),
    [
        ("logstreams/x", "", None),
        ("/logstreams/x", "", None),
        ("a/logstreams/b/logstreams/x", "a/logstreams/b", None),
        ("main/logstreams/x/write/t", "main", "t"),
        ("logstreams/logstreams/x", "logstreams", None),
    ],
)
def test_names_of_streams(name: str, instance: str, token: str | None) -> None:  # LOG-01
    found = parse_log_name(name)
    assert found is not None
    assert (found.instance_name, found.token) == (instance, token)


@pytest.mark.parametrize(
    "name",
    [
        *("", "logstreams", "x/logstreams", "logstreams/x/y", "logstreams/x/write"),
        # Metadata of an upload may be anything.
        "uploads/u/blobs/00/0/logstreams/x",
    ],
)
def test_names_of_other_things(name: str) -> None:
    assert parse_log_name(name) is None
