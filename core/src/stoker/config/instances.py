"""What single keys of ``[instances.NAME]`` cannot tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stoker.config.structs import ExecutorTable, InstanceTable
from stoker.errors import InvalidRequest
from stoker.frontend.instances import check_instance_name
from stoker.tables import quoted


def instance_problems(
    instances: Mapping[str, InstanceTable], executors: Mapping[str, ExecutorTable]
) -> Iterator[str]:
    """What is wrong with instances, and with how they share executors."""
    stores: dict[str, tuple[str, str]] = {}
    for name, instance in instances.items():
        try:
            check_instance_name(name)
        except InvalidRequest as error:
            yield f"[instances.{quoted(name)}]: {error}"
        if not instance.digest_functions:
            yield f"[instances.{quoted(name)}] digest_functions: give at least one"
        for executor in instance.executors:
            other, store = stores.setdefault(executor, (name, instance.blob_store))
            if executor in executors and store != instance.blob_store:
                yield (
                    f"[executors.{quoted(executor)}] serves instances {other!r} and {name!r} "
                    f"with different blob stores, {store!r} and {instance.blob_store!r}; "
                    f"give each an executor of its own"
                )
