"""A strategy within a sandbox. Apart from here, neither knows of the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from stoker.action import Platform
from stoker.spi import ExecutionStrategy, Exit, Process, ProcessSpec, Sandbox, Tell


class Enclosed(ExecutionStrategy):
    """Starts processes by `strategy`, each enclosed by `sandbox`. Calls may overlap."""

    def __init__(self, strategy: ExecutionStrategy, sandbox: Sandbox) -> None:
        self._strategy = strategy
        self._sandbox = sandbox
        self.user = strategy.user
        self.keeps_containers = strategy.keeps_containers
        self.protects_inputs = strategy.protects_inputs or sandbox.protects_inputs
        self.protects_changing_inputs = strategy.protects_inputs
        """As `protects_inputs`, of processes whose root changes while they live."""

    def enforcement(self) -> Sequence[str]:
        """What inputs are here, and why, and what the two say themselves."""
        return (
            self._about_inputs(),
            *self._strategy.enforcement(),
            *self._sandbox.enforcement(),
        )

    def _about_inputs(self) -> str:
        if self.protects_changing_inputs:
            return "inputs are linked to blobs, which actions cannot change"
        if self.protects_inputs:
            return (
                "inputs are linked to blobs, which actions cannot change; those of persistent "
                "workers are copies, as their folders change while they live"
            )
        return "inputs are copies: neither strategy nor sandbox keeps actions from changing blobs"

    async def identify_surroundings(self, properties: Platform) -> str:
        """The strategy's: within a sandbox nothing else decides."""
        return await self._strategy.identify_surroundings(properties)

    async def prepare(self, properties: Platform, tell: Tell) -> None:
        """The strategy's: a sandbox needs nothing."""
        await self._strategy.prepare(properties, tell)

    @asynccontextmanager
    async def start(self, spec: ProcessSpec) -> AsyncIterator[Process]:
        """Raises what either raises; where the sandbox cannot enclose, nothing is started."""
        async with (
            self._sandbox.enclose(spec) as enclosed,
            self._strategy.start(enclosed) as process,
        ):
            yield _EnclosedProcess(process, self._sandbox)


class _EnclosedProcess(Process):
    def __init__(self, process: Process, sandbox: Sandbox) -> None:
        self.name = process.name
        self.stdin = process.stdin
        self.stdout = process.stdout
        self.started_ns = process.started_ns
        self.facts = process.facts
        self._process = process
        self._sandbox = sandbox

    @property
    def has_exited(self) -> bool:  # type: ignore[override]  # it is for others to read only
        return self._process.has_exited

    async def wait(self) -> Exit:
        return self._sandbox.read_exit(await self._process.wait())

    def terminate(self) -> None:
        self._process.terminate()

    async def measure_memory(self) -> int | None:
        return await self._process.measure_memory()
