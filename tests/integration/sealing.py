"""The sealer in tests: by hand up to the head of the log, or on a thread."""

import threading
from collections.abc import Generator
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from events.heads import Note, PublicKey, Signer
from projector.seal import TreeBuilder
from projector.sealer import Sealer
from taskledger.postgres import connect_sync


class Key:
    """A signing key of the test's own."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self._public = self._private.public_key()
        self.public = PublicKey(self._public.public_bytes_raw(), self._verify)

    @property
    def pem(self) -> bytes:
        return self._public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def signer(self) -> Signer:
        return Signer(self.public, self._private.sign)

    def _verify(self, signature: bytes, text: bytes) -> bool:
        try:
            self._public.verify(signature, text)
        except Exception:  # noqa: BLE001
            return False
        return True


def seal(dsn: str, key: Key | None = None) -> int:
    """Brings the tree to the head of the log; returns its size."""
    with connect_sync(dsn, name="test") as connection:
        builder = TreeBuilder(connection, None if key is None else key.signer)
        row = connection.execute(
            "select i.tag, (select max(notification_id) from taskledger.task_events)"
            " from taskledger.log_identity i"
        ).fetchone()
        assert row is not None
        while builder.step(row[0], row[1] or 0):
            continue
        return builder.size


def newest(dsn: str) -> Note:
    with connect_sync(dsn, name="test") as connection:
        row = connection.execute(
            "select note from taskledger_proof.heads order by size desc limit 1"
        ).fetchone()
    assert row is not None
    return Note.parse(row[0])


@contextmanager
def sealing(dsn: str, key: Key | None = None, **options: float) -> Generator[Sealer]:
    """A sealer at work for the length of the block."""
    stop = threading.Event()
    sealer = Sealer(dsn, None if key is None else key.signer, seal_seconds=0.02, **options)
    thread = threading.Thread(target=sealer.run, args=(stop,), name="sealer")
    thread.start()
    try:
        yield sealer
    finally:
        stop.set()
        thread.join(15)
        assert not thread.is_alive()
