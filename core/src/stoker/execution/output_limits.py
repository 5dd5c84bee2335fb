"""What an action may leave behind (OUT-24, OUT-25)."""

from __future__ import annotations

from dataclasses import dataclass

from stoker.errors import FailedPrecondition


@dataclass(slots=True, kw_only=True)
class OutputBudget:
    """Bounds on the outputs of one action, and what was counted of them so far.

    Sizes are those that files claim to have: a sparse file counts as what would have to be
    stored. What is within two outputs counts twice.
    """

    executor: str
    max_files: int
    max_bytes: int
    max_blob_bytes: int = 0
    """Of the instance that the action was sent to; 0 for no bound."""
    files: int = 0
    size_bytes: int = 0

    def count(self, name: str, size_bytes: int = 0) -> None:
        """Count an output called `name`. Raises FailedPrecondition if it is too much."""
        self.files += 1
        if self.files > self.max_files:
            raise FailedPrecondition(
                f"the action left more outputs than the {self.max_files} that max_output_files "
                f"allows on executor {self.executor}: {name} is one too many"
            )
        if size_bytes:
            self.count_bytes(name, size_bytes)

    def count_bytes(self, name: str, size_bytes: int) -> None:
        """Count only the bytes of `name`, as for stdout. Raises as `count` does."""
        self.check_blob(name, size_bytes)
        if self.size_bytes + size_bytes > self.max_bytes:
            raise FailedPrecondition(
                f"the action's outputs have more than the {self.max_bytes} bytes that "
                f"max_output_bytes allows on executor {self.executor}: {name} has {size_bytes} "
                f"bytes, and what was counted before it {self.size_bytes}"
            )
        self.size_bytes += size_bytes

    def check_blob(self, name: str, size_bytes: int) -> None:
        """Raise FailedPrecondition if `name` is more than a blob may be."""
        if 0 < self.max_blob_bytes < size_bytes:
            raise FailedPrecondition(
                f"{name} has {size_bytes} bytes, more than the {self.max_blob_bytes} that "
                f"max_blob_bytes of this instance allows: executor {self.executor} cannot store it"
            )
