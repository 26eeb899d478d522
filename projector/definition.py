"""What the generations of a projection are made by."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Definition:
    projection: str
    tables: str
    """DDL, in which `{schema}` stands for the generation's own."""
    fold_version: int
    """Raised when the same events give other rows."""

    @property
    def version(self) -> str:
        """Of the schema: other tables or another fold have another one, whoever changes them."""
        return hashlib.sha256(f"{self.tables}\n{self.fold_version}".encode()).hexdigest()[:16]
