"""Heads of the tree over the log: how many events, their root, and by whom it was signed. Pure.

A head is a signed note as transparency logs use it (c2sp.org/signed-note, c2sp.org/tlog-checkpoint), so
that their tools and witnesses can read it:

    taskledger/k3v9x0aa                                which log: its tag
    1042                                               over how many events, from the first one
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=       the root
    sealed 2026-11-26T08:09:10.123456Z

    — taskledger/k3v9x0aa Nt8pXb…                      the key's number, its signature; none without a key
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from events.errors import MalformedHead

ORIGIN: Final = "taskledger/"
_ED25519: Final = b"\x01"
_NUMBER_BYTES: Final = 4
_TEXT: Final = re.compile(
    r"taskledger/([0-9a-z]{8})\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\nsealed (\S+Z)\n", re.ASCII
)

Verify = Callable[[bytes, bytes], bool]
"""Signature and text; whether the one was made over the other."""


@dataclass(frozen=True, slots=True)
class Head:
    tag: str
    """Of the log when the head was made: a restore draws another."""
    size: int
    root: bytes
    sealed_at: datetime

    @property
    def text(self) -> str:
        """What is signed."""
        root = base64.b64encode(self.root).decode()
        sealed = self.sealed_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return f"{ORIGIN}{self.tag}\n{self.size}\n{root}\nsealed {sealed}\n"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """32 bytes of Ed25519, and how to verify with them."""

    raw: bytes
    verify: Verify

    def number(self, tag: str) -> bytes:
        """By which a signature line tells its key. Not proof of anything."""
        return hashlib.sha256(f"{ORIGIN}{tag}\n".encode() + _ED25519 + self.raw).digest()[:_NUMBER_BYTES]

    def has_signed(self, note: "Note") -> bool:
        number, text = self.number(note.head.tag), note.head.text.encode()
        return any(
            signature[:_NUMBER_BYTES] == number and self.verify(signature[_NUMBER_BYTES:], text)
            for signature in note.signatures
        )


@dataclass(frozen=True, slots=True)
class Signer:
    key: PublicKey
    sign: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Note:
    """A head with its signatures, if any, each after the number of its key."""

    head: Head
    signatures: Sequence[bytes]

    text: str
    """All of it, as it was written."""

    @classmethod
    def parse(cls, text: str) -> "Note":
        """Raises MalformedHead for what note_of() would not have written."""
        body, _, below = text.partition("\n\n")
        match = _TEXT.fullmatch(f"{body}\n")
        if match is None:
            raise MalformedHead("this is no head of a task log")
        tag, size, root, sealed = match.groups()
        try:
            head = Head(tag, int(size), base64.b64decode(root), datetime.fromisoformat(sealed))
            signatures = [_signature(line, tag) for line in below.splitlines()]
        except (ValueError, binascii.Error):
            raise MalformedHead("this is no head of a task log") from None
        if head.text != f"{body}\n":
            raise MalformedHead("this head is not spelt as it was signed")
        return cls(head, signatures, text)


def note_of(head: Head, signer: Signer | None) -> str:
    """The head as text, signed if there is a key."""
    if signer is None:
        return f"{head.text}\n"
    raw = signer.key.number(head.tag) + signer.sign(head.text.encode())
    signature = base64.b64encode(raw).decode()
    return f"{head.text}\n— {ORIGIN}{head.tag} {signature}\n"


def _signature(line: str, tag: str) -> bytes:
    dash, name, value = line.split(" ")
    if dash != "—" or name != f"{ORIGIN}{tag}":
        raise ValueError
    return base64.b64decode(value, validate=True)
