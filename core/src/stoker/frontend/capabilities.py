"""The Capabilities service (section 1 of the conformance list)."""

from __future__ import annotations

from stoker.action import OUTPUT_NODE_PROPERTIES
from stoker.digest import SHA256
from stoker.frontend.instances import Instance, Instances, naming_instance
from stoker.protos import remote_execution_pb2 as reapi
from stoker.protos import semver_pb2
from stoker.rpc import ServerCall, Service, unary_unary

MAX_BATCH_BYTES = 4 * 1024 * 1024 - 64 * 1024
"""Room for the digests beside the data: clients refuse messages of more than 4 MiB (CAP-10)."""

MAX_RESPONSE_BYTES = 4 * 1024 * 1024 - 32 * 1024
"""What a response may weigh: many clients take no more than gRPC's default (GEN-15)."""

COMPRESSORS = (reapi.Compressor.ZSTD,)
"""What ByteStream and batches take and give beside blobs as they are (CAP-13)."""

MIN_PRIORITY, MAX_PRIORITY = -1000, 1000
"""Execution priorities that are accepted; lower values run sooner (CAP-09, EXE-17)."""


class CapabilitiesService:
    """Tells what each instance can do. Touches no storage (CAP-16)."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    def service(self) -> Service:
        return Service(
            "build.bazel.remote.execution.v2.Capabilities",
            {
                "GetCapabilities": unary_unary(
                    naming_instance(self.get_capabilities),
                    reapi.GetCapabilitiesRequest,
                    reapi.ServerCapabilities,
                )
            },
        )

    async def get_capabilities(
        self, request: reapi.GetCapabilitiesRequest, _: ServerCall
    ) -> reapi.ServerCapabilities:
        instance = self._instances.resolve(request.instance_name)
        capabilities = reapi.ServerCapabilities(
            cache_capabilities=_cache_capabilities(instance),
            # Bazel 2 and 4 stop unless the range reaches down to 2.0 (CAP-06).
            low_api_version=semver_pb2.SemVer(major=2, minor=0),
            high_api_version=semver_pb2.SemVer(major=2, minor=12),
        )
        if instance.executors:
            capabilities.execution_capabilities.CopyFrom(_execution_capabilities(instance))
        return capabilities


def _cache_capabilities(instance: Instance) -> reapi.CacheCapabilities:
    return reapi.CacheCapabilities(
        digest_functions=[function.number for function in instance.digest_functions],
        action_cache_update_capabilities=reapi.ActionCacheUpdateCapabilities(
            update_enabled=instance.client_updates
        ),
        cache_priority_capabilities=_priorities(0, 0),
        max_batch_total_size_bytes=MAX_BATCH_BYTES,
        max_cas_blob_size_bytes=instance.max_blob_bytes,
        supported_compressors=COMPRESSORS,
        supported_batch_update_compressors=COMPRESSORS,
        symlink_absolute_path_strategy=reapi.SymlinkAbsolutePathStrategy.ALLOWED,
    )


def _execution_capabilities(instance: Instance) -> reapi.ExecutionCapabilities:
    functions = instance.digest_functions
    # Older Bazels read this field alone, and want their own choice in it (CAP-04).
    preferred = SHA256 if SHA256 in functions else functions[0]
    return reapi.ExecutionCapabilities(
        digest_function=preferred.number,
        digest_functions=[function.number for function in functions],
        exec_enabled=True,
        supported_node_properties=OUTPUT_NODE_PROPERTIES,
        execution_priority_capabilities=_priorities(MIN_PRIORITY, MAX_PRIORITY),
    )


def _priorities(lowest: int, highest: int) -> reapi.PriorityCapabilities:
    return reapi.PriorityCapabilities(
        priorities=[
            reapi.PriorityCapabilities.PriorityRange(min_priority=lowest, max_priority=highest)
        ]
    )
