"""obstore's exceptions become stoker's, once, here (STO-04).

obstore tells most failures by text only: the status and the body that the service sent. Neither
text nor cause is handed on, as bodies may quote signatures and addresses may hold tokens.
"""

from __future__ import annotations

import re

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from stoker.spi import ConfigurationError, StokerError, StorageFull, Unavailable

LIBRARY_ERRORS = (BaseError, OSError)
"""What obstore raises for whatever goes wrong between it and a bucket."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_ADDRESS = re.compile(r"\w+://\S+")
_MARKUP = re.compile(r"<.*", re.DOTALL)

_OBJECT_ABSENT = frozenset({"NoSuchKey", "BlobNotFound"})
_BUCKET_ABSENT = frozenset({"NoSuchBucket", "ContainerNotFound"})
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"})
_HINTS = {
    "NoSuchBucket": "there is no such bucket",
    "ContainerNotFound": "there is no such container",
    "SignatureDoesNotMatch": "the secret key does not fit the access key",
    "InvalidAccessKeyId": "the access key is not known",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "AccessDenied": "these credentials lack a permission",
}
# Where machines of Amazon, Google and Azure are asked for credentials of their own.
_IDENTITY_SERVICE = ("/latest/api/token", "/latest/meta-data/", "/computeMetadata/", "//169.254.")
_TRANSPORT = {
    "error sending request": "it does not answer",
    "request or response body error": "its answer broke off",
    "Received non-partial response": "it does not know ranges",
}


def proves_absence(error: Exception) -> bool:
    """Whether the service said that an object is absent, and not merely that something is.

    A load balancer's 404, or that of a bucket that was deleted, must never read as "missing":
    clients would upload everything again. Answers to HEAD have no body and prove nothing.
    """
    return isinstance(error, FileNotFoundError) and _code(str(error)) in _OBJECT_ABSENT


def is_unsatisfiable_range(error: Exception) -> bool:
    """Whether a read began at or behind the object's end."""
    return _status(str(error)) == "416"


def unavailable(error: Exception, bucket: str, doing: str) -> StokerError:
    """What `error` means to a client who wanted `doing`: StorageFull or Unavailable."""
    text = str(error)
    message = f"bucket {bucket}: {doing} failed: {_reason(error)}"
    if _status(text) == "507" or _code(text) in _FULL:
        return StorageFull(message)
    return Unavailable(message)


def at_opening(error: Exception, bucket: str) -> StokerError:
    """What `error` means while a bucket is opened: ConfigurationError if waiting cannot help."""
    if _is_lasting(error):
        return ConfigurationError([f"bucket {bucket} cannot be used: {_reason(error)}"])
    return unavailable(error, bucket, "opening it")


def _is_lasting(error: Exception) -> bool:
    text = str(error)
    return (
        isinstance(error, PermissionDeniedError | UnauthenticatedError)
        or _code(text) in _BUCKET_ABSENT
        or _status(text) in {"400", "405", "501"}
        or "incorrectly configured region" in text
        or _asked_for_credentials(text)
    )


def _reason(error: Exception) -> str:
    text = str(error)
    if _asked_for_credentials(text):
        return "there are no credentials in the environment, and this machine has none of its own"
    if status := _status(text):
        code = _code(text)
        named = f"{status} {code}" if code else status
        hint = _HINTS.get(code or "")
        return f"{named} ({hint})" if hint else named
    if "incorrectly configured region" in text:
        return "it is in another region"
    if isinstance(error, UnauthenticatedError):
        return "its credentials cannot be had"
    return _bare(text)


def _bare(text: str) -> str:
    line = text.partition("\n")[0].rpartition(" - ")[2]
    for told, meant in _TRANSPORT.items():
        if told in line:
            return meant
    return _MARKUP.sub("", _ADDRESS.sub("…", line)).strip()[:200]


def _asked_for_credentials(text: str) -> bool:
    return any(place in text.partition("\n")[0] for place in _IDENTITY_SERVICE)


def _status(text: str) -> str | None:
    found = _STATUS.search(text)
    return found[1] if found else None


def _code(text: str) -> str | None:
    found = _CODE.search(text)
    return found[1] if found else None
