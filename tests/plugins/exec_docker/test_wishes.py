"""What a platform may ask for, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from stoker import spi
from stoker_exec_docker.images import split_name
from stoker_exec_docker.settings import DockerSettings
from stoker_exec_docker.wishes import Wishes, read_wishes

USER = spi.ProcessUser(65534, 65534)


def wishes(properties: dict[str, str], **settings: Any) -> Wishes:
    given = {name: (value,) for name, value in properties.items()}
    return read_wishes(DockerSettings(**{"default_image": "usual"} | settings), given, USER)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("docker://a/b:1", "a/b:1"),
        ("a/b:1", "a/b:1"),
        ("docker://a/b@sha256:00", "a/b@sha256:00"),
        ("", "usual"),
        ("none", "usual"),
    ],
)
def test_an_image_is_named_with_the_prefix_or_without(name: str, image: str) -> None:  # ISO-02
    assert wishes({"container-image": name}).image == image


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("container-image", "docker://elsewhere/a"),
        ("dockerNetwork", "standard"),
        ("dockerNetwork", "host"),
        ("dockerNetwork", "mesh"),
        ("dockerPrivileged", "true"),
        ("dockerRunAsRoot", "True"),
        ("dockerRunAsRoot", "perhaps"),
        ("dockerAddCapabilities", "SYS_ADMIN"),
        ("dockerUser", "root"),
        ("dockerUser", "0"),
        ("dockerUser", "4711"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(name: str, value: str) -> None:  # ISO-03
    with pytest.raises(spi.FailedPrecondition, match=f"{name}={value}".rstrip("e")[:14]):
        wishes({name: value}, allowed_images=("here/*",))


def test_what_is_allowed_is_given_and_never_kept() -> None:
    allowed: dict[str, Any] = {
        "keep_containers": "always",
        "allow_run_as_root": True,
        "allowed_capabilities": ("SYS_PTRACE",),
        "allowed_users": (7,),
    }
    assert wishes({}, **allowed).reuse
    for name, value in (
        ("dockerRunAsRoot", "true"),
        ("dockerAddCapabilities", "SYS_PTRACE"),
        ("dockerUser", "7"),
    ):
        assert not wishes({name: value}, **allowed).reuse
    assert wishes({"dockerUser": "7"}, **allowed).user == (7, 7)
    assert wishes({"dockerRunAsRoot": "true"}, **allowed).user == (0, 0)


def test_a_container_is_kept_by_property_or_by_policy() -> None:  # PWK-03
    assert wishes({"dockerReuse": "True"}).reuse
    assert not wishes({}).reuse
    assert wishes({}, keep_containers="always").reuse
    assert not wishes({"dockerReuse": "True"}, keep_containers="never").reuse


def test_values_that_differ_are_refused() -> None:
    with pytest.raises(spi.FailedPrecondition, match="container-image"):
        read_wishes(DockerSettings(), {"container-image": ("a", "b")}, USER)
    with pytest.raises(spi.FailedPrecondition, match="default_image"):
        read_wishes(DockerSettings(), {}, USER)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a", ("a", "latest")),
        ("a:1", ("a", "1")),
        ("host:5000/a", ("host:5000/a", "latest")),
        ("host:5000/a:1", ("host:5000/a", "1")),
        ("host:5000/a:1@sha256:00", ("host:5000/a", "sha256:00")),
    ],
)
def test_a_name_has_a_repository_and_a_tag(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


@pytest.mark.parametrize(
    "name",
    [
        "../containers/other",
        "here/../../containers/other",
        "here/./a",
        "here//a",
        "/here",
        "here/a?x=1",
        "here/a b",
        "here/\n",
        "-here",
    ],
)
def test_what_is_no_name_of_an_image_is_refused(name: str) -> None:
    with pytest.raises(spi.FailedPrecondition, match="container-image"):
        wishes({"container-image": f"docker://{name}"}, allowed_images=("*",))


def test_settings_are_understood_as_properties_are() -> None:
    settings: dict[str, Any] = {"default_image": "docker://usual", "allowed_images": ()}
    assert wishes({"container-image": "usual"}, **settings).image == "usual"
    allowed = {"allowed_capabilities": ("CAP_sys_ptrace",)}
    assert wishes({"dockerAddCapabilities": "SYS_PTRACE"}, **allowed).capabilities
    with pytest.raises(spi.FailedPrecondition, match="dockerReuse=perhaps"):
        wishes({"dockerReuse": "perhaps"}, keep_containers="always")
