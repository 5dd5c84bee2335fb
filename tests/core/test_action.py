"""What is sound in an Action and its Command, and what is refused (EXE-08…12, 15, 27, 28)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.action import LoadedAction, load_action, parse_action, parse_command, resolve_output
from stoker.digest import SHA256
from stoker.errors import InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi


def load(command: reapi.Command, action: reapi.Action | None = None) -> LoadedAction:
    action = action or reapi.Action()
    action.input_root_digest.CopyFrom(SHA256.empty.to_proto())
    return load_action(
        SHA256.empty, action, command, namespace="", metadata=reapi.RequestMetadata()
    )


def command(**fields: object) -> reapi.Command:
    return reapi.Command(arguments=["true"], **fields)  # type: ignore[arg-type] # fields by name


def platform(*pairs: tuple[str, str]) -> reapi.Platform:
    return reapi.Platform(
        properties=[reapi.Platform.Property(name=name, value=value) for name, value in pairs]
    )


def test_the_actions_platform_wins() -> None:  # EXE-12
    old = command(platform=platform(("a", "command")))
    assert load(old).platform == {"a": ("command",)}
    assert load(old, reapi.Action(platform=platform(("a", "action")))).platform == {
        "a": ("action",)
    }
    assert load(old, reapi.Action(platform=platform())).platform == {}


def test_a_property_may_have_several_values() -> None:  # EXE-15
    several = platform(("ISA", "b"), ("OSFamily", "linux"), ("ISA", "a"))
    assert load(command(platform=several)).platform == {"ISA": ("a", "b"), "OSFamily": ("linux",)}


def test_output_paths_hide_the_legacy_fields() -> None:  # OUT-01
    legacy = command(output_files=["f"], output_directories=["d"])
    assert load(legacy).output_paths == ("f", "d")
    both = command(output_files=["f"], output_paths=["p"])
    assert load(both).output_paths == ("p",)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"output_paths": ["/f"]}, "'/f'"),
        ({"output_paths": ["f/"]}, "'f/'"),
        ({"output_paths": ["a/../../f"]}, "stay inside"),
        ({"output_paths": ["a\0b"]}, "must be relative"),
        ({"output_files": ["d", "d/f"]}, "'d' is a parent of output 'd/f'"),
        ({"working_directory": "/d"}, "working_directory '/d'"),
        ({"working_directory": "d/.."}, "working_directory"),
        ({"output_node_properties": ["mtime", "colour"]}, "'colour' are not known; known are"),
        (
            {"environment_variables": [reapi.Command.EnvironmentVariable(name="A=B")]},
            "'A=B' is no name",
        ),
        ({"environment_variables": [reapi.Command.EnvironmentVariable(value="x")]}, "is no name"),
    ],
)
def test_unsound_commands(fields: dict[str, object], said: str) -> None:  # EXE-27, EXE-28
    with pytest.raises(InvalidRequest) as info:
        load(command(**fields))
    assert said in str(info.value)


def test_no_arguments() -> None:
    with pytest.raises(InvalidRequest, match="nothing to run"):
        load(reapi.Command())


@pytest.mark.parametrize("nanoseconds", [0, -1])
def test_a_timeout_of_nothing_is_refused(nanoseconds: int) -> None:  # EXE-10
    action = reapi.Action()
    action.timeout.nanos = nanoseconds
    with pytest.raises(InvalidRequest, match="leave it unset"):
        load(command(), action)
    assert load(command()).timeout_seconds is None  # EXE-11


def test_blobs_that_are_no_messages() -> None:  # EXE-08
    for parse in (parse_action, parse_command):
        with pytest.raises(InvalidRequest, match=SHA256.empty.hash):
            parse(SHA256.empty, b"\xff\xff")


@given(st.text("ab/.", max_size=8), st.text("ab/.", max_size=8))
def test_no_output_ever_leaves_the_root(directory: str, path: str) -> None:  # SEC-05
    try:
        resolved = resolve_output(directory, path)
    except InvalidRequest:
        return
    assert not resolved.startswith("/")
    assert ".." not in resolved.split("/")
