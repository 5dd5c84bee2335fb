"""What an action's platform may wish of its container, and what it is given. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import get_args

from stoker import spi
from stoker_exec_docker.settings import DockerSettings, Network

Properties = Mapping[str, tuple[str, ...]]

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_IMAGE_NAME = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:@\[\]-]*(/[A-Za-z0-9][A-Za-z0-9._:@-]*)*")
_DEFAULT_NAMES = {"bridge": "standard", "none": "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a container is to be like, as far as its platform decides it."""

    image: str
    network: Network
    user: spi.ProcessUser
    capabilities: tuple[str, ...] = ()
    run_as_root: bool = False
    privileged: bool = False
    reuse: bool = False
    input_root_as_root: bool = False


def read_wishes(settings: DockerSettings, properties: Properties, user: spi.ProcessUser) -> Wishes:
    """What `properties` ask for, where `user` is whom processes run as by default.

    Raises FailedPrecondition, naming the property, for what is unknown or not allowed (ISO-03).
    """
    privileged = _allowed(properties, "dockerPrivileged", settings.allow_privileged)
    run_as_root = _allowed(properties, "dockerRunAsRoot", settings.allow_run_as_root)
    capabilities = _capabilities(settings, properties)
    own_user = _user(settings, properties)
    ordinary = not (privileged or run_as_root or capabilities or own_user)
    own_root = _boolean(properties, "input-root-as-root", settings.input_root_as_root)
    return Wishes(
        image=_image(settings, properties),
        network=_network(settings, properties),
        user=spi.ProcessUser(0, 0) if privileged or run_as_root else own_user or user,
        capabilities=capabilities,
        run_as_root=run_as_root,
        privileged=privileged,
        # What had more rights than others may have changed more than can be seen.
        reuse=_reuse(settings, properties) and ordinary and not own_root,
        input_root_as_root=own_root,
    )


def _value(properties: Properties, name: str) -> str:
    """The one value of a property, empty without one."""
    values = set(properties.get(name, ()))
    if len(values) > 1:
        raise spi.FailedPrecondition(f"{name} is given more than once, with different values")
    return next(iter(values), "")


def _image(settings: DockerSettings, properties: Properties) -> str:
    # ISO-02: with the prefix and without it; "none" is what clients write for no image.
    name = _without_scheme(_value(properties, "container-image"))
    if name in ("", "none"):
        if settings.default_image is None:
            raise spi.FailedPrecondition(
                "the platform names no container-image, and there is no default_image"
            )
        return _without_scheme(settings.default_image)
    if not _IMAGE_NAME.fullmatch(name):
        # It becomes part of a path of the engine's API.
        raise spi.FailedPrecondition(f"container-image={name!r} is no name of an image")
    if name != _without_scheme(settings.default_image or "") and not any(
        fnmatchcase(name, pattern) for pattern in settings.allowed_images
    ):
        raise spi.FailedPrecondition(f"container-image={name} is not among the allowed_images")
    return name


def _without_scheme(name: str) -> str:
    return name.removeprefix("docker://")


def _network(settings: DockerSettings, properties: Properties) -> Network:
    value = _value(properties, "dockerNetwork")
    if not value:
        return settings.network
    value = _DEFAULT_NAMES.get(value, value)
    for network in get_args(Network):
        if value == network:
            break
    else:
        names = ", ".join(get_args(Network))
        raise spi.FailedPrecondition(f"dockerNetwork={value} is none of {names}")
    if network not in ("off", settings.network, *settings.allowed_networks):
        raise spi.FailedPrecondition(f"dockerNetwork={value} is not among the allowed_networks")
    return network  # type: ignore[no-any-return]  # get_args is of any type


def _allowed(properties: Properties, name: str, permission: bool) -> bool:
    wish = _boolean(properties, name)
    if wish and not permission:
        raise spi.FailedPrecondition(f"{name}=true is not allowed on this executor")
    return wish


def _boolean(properties: Properties, name: str, default: bool = False) -> bool:
    value = _value(properties, name)
    if value.lower() not in {"", *_BOOLEANS}:
        raise spi.FailedPrecondition(f"{name}={value} is neither true nor false")
    return _BOOLEANS.get(value.lower(), default)


def _capabilities(settings: DockerSettings, properties: Properties) -> tuple[str, ...]:
    wishes = {
        _capability(name)
        for value in properties.get("dockerAddCapabilities", ())
        for name in value.split(",")
        if name.strip()
    }
    if refused := wishes - set(map(_capability, settings.allowed_capabilities)):
        names = ",".join(sorted(refused))
        raise spi.FailedPrecondition(
            f"dockerAddCapabilities={names} is not among the allowed_capabilities"
        )
    return tuple(sorted(wishes))


def _capability(name: str) -> str:
    return name.strip().upper().removeprefix("CAP_")


def _user(settings: DockerSettings, properties: Properties) -> spi.ProcessUser | None:
    value = _value(properties, "dockerUser")
    if not value:
        return None
    number, _, group = value.partition(":")
    if not number.isdecimal() or int(number) not in settings.allowed_users:
        raise spi.FailedPrecondition(f"dockerUser={value} is not among the allowed_users")
    if group and group != number:
        raise spi.FailedPrecondition(f"dockerUser={value}: the group is that of the same number")
    return spi.ProcessUser(int(number), int(number))


def _reuse(settings: DockerSettings, properties: Properties) -> bool:
    wish = _boolean(properties, "dockerReuse")
    if settings.keep_containers == "by-property":
        return wish
    return settings.keep_containers == "always"
