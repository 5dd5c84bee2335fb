"""The action cache of an instance of another REAPI server, as one of this one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stoker import spi
from stoker.client.calls import REAPI, Calls
from stoker.client.far_side import RemoteSettings, mapping_errors, open_far_side, within
from stoker.digest import Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import RpcError, StatusCode
from stoker.spi import ActionCache, ActionKey, ActionResult

_ACTION_CACHE = f"{REAPI}.ActionCache"


class RemoteActionCacheSettings(RemoteSettings, frozen=True):
    """Settings of the action cache kind ``remote``."""

    namespace: str | None = None
    """The instance of this server whose results are filed there under their actions' own digests,
    where other clients of that server find them; the one of the same name unless given."""


class RemoteActionCache(ActionCache):
    """Results of an instance of another server. Calls may overlap freely.

    That has one namespace. Results of `namespace` are filed under their actions as they are;
    those of other namespaces under digests derived from both, so that none sees another's. The
    server may refuse a result, and may give it back normalised, as REAPI allows: with contents
    moved to its CAS, say. Errors are as those of RemoteBlobStore. It cannot be listed.
    """

    def __init__(self, calls: Calls, namespace: str, timeout_seconds: float) -> None:
        self._calls = calls
        self._namespace = namespace
        self._timeout_seconds = timeout_seconds

    async def get(self, key: ActionKey) -> ActionResult | None:
        action = self._filed_as(key)
        request = reapi.GetActionResultRequest(
            instance_name=self._calls.instance_name,
            action_digest=action.to_proto(),
            digest_function=action.function.number,
        )
        with mapping_errors(self._calls.target), within(self._timeout_seconds):
            try:
                return await self._calls.unary(
                    f"{_ACTION_CACHE}/GetActionResult", request, reapi.ActionResult
                )
            except RpcError as error:
                if error.code is StatusCode.NOT_FOUND:
                    return None
                raise

    async def update(self, key: ActionKey, result: ActionResult) -> None:
        action = self._filed_as(key)
        request = reapi.UpdateActionResultRequest(
            instance_name=self._calls.instance_name,
            action_digest=action.to_proto(),
            action_result=result,
            digest_function=action.function.number,
        )
        with mapping_errors(self._calls.target, writing=True), within(self._timeout_seconds):
            await self._calls.unary(
                f"{_ACTION_CACHE}/UpdateActionResult", request, reapi.ActionResult
            )

    def _filed_as(self, key: ActionKey) -> Digest:
        if key.namespace == self._namespace:
            return key.action
        text = f"stoker\0{key.namespace}\0{key.action}"
        return key.action.function.digest(text.encode("utf-8", "surrogatepass"))


@asynccontextmanager
async def open_remote_action_cache(
    settings: RemoteActionCacheSettings, context: spi.Context
) -> AsyncIterator[ActionCache]:
    """Open the action cache of the kind ``remote``. The server need not be there yet."""
    namespace = settings.instance_name if settings.namespace is None else settings.namespace
    async with open_far_side(settings, context) as calls:
        yield RemoteActionCache(calls, namespace, settings.timeout_seconds)
