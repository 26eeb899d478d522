"""Keys: what seals and opens text (AES-256-GCM), and what wraps those that do. No I/O.

A master key is 32 random bytes in a file outside the database. A data key is 32 random bytes in the
database, wrapped by a master key. Text is sealed under a key of its task, derived from the data key: a
random nonce of 96 bits is safe for about 2³² messages of one key, which a busy tenant would pass in weeks,
and a task never.
"""

import base64
import hmac
import secrets
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from events.envelopes import Envelope, Place
from events.errors import SealBroken

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class DataKey:
    id: UUID
    secret: bytes = field(repr=False)

    def seal(self, plain: bytes, place: Place) -> Envelope:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        ciphertext = self._cipher(place).encrypt(nonce, plain, place.context)
        return Envelope(self.id, place.version, nonce, ciphertext)

    def open(self, envelope: Envelope, place: Place) -> bytes:
        """Raises SealBroken where it was sealed with another key or for another place."""
        try:
            return self._cipher(place).decrypt(envelope.nonce, envelope.ciphertext, place.context)
        except (InvalidTag, ValueError):
            raise SealBroken(f"the {place.field} was not sealed for its place") from None

    def fingerprint(self, digest: bytes) -> bytes:
        return hmac.digest(self.secret, b"fingerprint " + digest, sha256)

    def _cipher(self, place: Place) -> AESGCM:
        derived = blake2b(place.task.bytes, key=self.secret, digest_size=KEY_BYTES, person=b"task")
        return AESGCM(derived.digest())


class MasterKey:
    """Wraps data keys. `id` is not secret: a row says by it which master key its own is wrapped with."""

    def __init__(self, secret: bytes) -> None:
        """Raises ValueError unless it is 32 bytes."""
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a master key is {KEY_BYTES} bytes")
        self._cipher = AESGCM(secret)
        self.id = hmac.digest(secret, b"taskledger master key", sha256)[:8].hex()

    @classmethod
    def parse(cls, text: str) -> "MasterKey":
        """From its form in a file. Raises ValueError."""
        return cls(base64.b64decode(text.strip(), validate=True))

    def wrap(self, key: UUID, secret: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, key.bytes)

    def unwrap(self, key: UUID, wrapped: bytes) -> bytes:
        """Raises SealBroken."""
        try:
            return self._cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], key.bytes)
        except (InvalidTag, ValueError):
            raise SealBroken("a data key is not wrapped with the master key that its row names") from None


class MasterKeys:
    """The present one wraps; the previous one still unwraps, until all is wrapped anew."""

    def __init__(self, present: MasterKey, previous: MasterKey | None = None) -> None:
        self.present = present
        self._by_id = {key.id: key for key in (present, previous) if key is not None}

    def knows(self, master: str) -> bool:
        return master in self._by_id

    def unwrap(self, key: UUID, master: str, wrapped: bytes) -> DataKey:
        """Raises SealBroken, also for a master key that is neither of ours."""
        ours = self._by_id.get(master)
        if ours is None:
            raise SealBroken("a data key is wrapped with a master key that this process does not have")
        return DataKey(key, ours.unwrap(key, wrapped))


def new_secret() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def new_master_text() -> str:
    """A master key as its file holds it."""
    return base64.b64encode(new_secret()).decode() + "\n"
