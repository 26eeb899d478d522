"""The Ed25519 key that signs heads of the tree over the log: a file outside the database, and the public
half beside it for whoever verifies."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from events.errors import ConfigurationError
from events.heads import PublicKey, Signer
from taskledger.settings import PREFIX, Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

DEFAULT_NAME: Final = "signing.key"
SIGNING_KEY_FILE: Final = f"{PREFIX}PROOF__SIGNING_KEY_FILE"


def key_file(settings: Settings) -> Path | None:
    """Where the key is: as set, or in the data folder if `up` has made one there; None: heads are not
    signed."""
    if settings.proof.signing_key_file is not None:
        return settings.proof.signing_key_file
    default = settings.data_dir / DEFAULT_NAME
    return default if default.exists() else None


def public_file(private: Path) -> Path:
    return private.with_name(f"{private.name}.pub")


def make_key(settings: Settings) -> Path:
    """Makes the key, readable by its owner alone, unless it is there; its public half may be read by all.
    Raises ConfigurationError where that cannot be written."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path = settings.proof.signing_key_file or settings.data_dir / DEFAULT_NAME
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            key = Ed25519PrivateKey.generate()
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            draft = path.with_name(f"{path.name}.new")
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(pem)
                os.fsync(file.fileno())
            public_file(path).write_bytes(_public_pem(key.public_key()))
            draft.rename(path)
    except OSError as error:
        raise ConfigurationError(f"{SIGNING_KEY_FILE}: cannot write {path}: {error.strerror}") from None
    return path


def load_signer(path: Path) -> Signer:
    """Raises ConfigurationError for a file that is missing or holds no private Ed25519 key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{SIGNING_KEY_FILE}: {path} holds no private Ed25519 key in PEM")
    return Signer(_public(key.public_key()), key.sign)


def load_public(path: Path) -> PublicKey:
    """From a public key's file. Raises ConfigurationError as load_signer()."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(f"{path} holds no public Ed25519 key in PEM")
    return _public(key)


def public_keys(settings: Settings, given: Path | None = None) -> list[PublicKey]:
    """With which heads should be signed: the one in the file `given`, or the one that is set; none without
    either. Raises ConfigurationError as load_public()."""
    private = key_file(settings)
    if given is None and private is not None:
        given = public_file(private)
        if not given.exists():
            return [load_signer(private).key]
    return [] if given is None else [load_public(given)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{SIGNING_KEY_FILE}: cannot read {path}: {error.strerror}") from None


def _public(key: "Ed25519PublicKey") -> PublicKey:
    from cryptography.exceptions import InvalidSignature

    def verify(signature: bytes, text: bytes) -> bool:
        try:
            key.verify(signature, text)
        except InvalidSignature:
            return False
        return True

    return PublicKey(key.public_bytes_raw(), verify)


def _public_pem(key: "Ed25519PublicKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
