"""What can happen to a key of encrypted text. The key is the aggregate; its id does not say whose it is."""

from typing import ClassVar, Literal

from events.records import EventRecord


class KeyEvent(EventRecord):
    tenant: str


class KeyErased(KeyEvent):
    """From here on nobody can read what was sealed with it."""

    TOPIC: ClassVar[str] = "KeyErased"

    scope: Literal["subject", "tenant"]
    keys: int = 1
    """How many went with it: a tenant's erasure is one event, of the first of its keys."""
    by: str
    reason: str
