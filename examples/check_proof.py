"""Checks a saved proof by itself: with Python's standard library, and openssl 3 for the signature.

    python check_proof.py proof.json --key signing.pub                   from GET /tasks/{id}/proof
    python check_proof.py consistency.json --since head.json --key …     from GET /proof/consistency

The first shows that these events, byte for byte, are in the log whose head was signed with that key. The
second, that all that was under `head.json`, kept from GET /proof/head, is still there as it was.
"""

import argparse
import base64
import hashlib
import json
import struct
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any


def leaf_hash(event: dict[str, Any]) -> bytes:
    """Over the event's nine fields, each after its length in four bytes."""
    at = datetime.fromisoformat(event["recorded_at"]) - datetime(2000, 1, 1, tzinfo=UTC)
    fields = [
        struct.pack(">q", event["position"]),
        bytes.fromhex(event["originator_id"].replace("-", "")),
        struct.pack(">q", event["version"]),
        event["topic"].encode(),
        event["state"].encode() if "state" in event else base64.b64decode(event["state_base64"]),
        struct.pack(">q", at // timedelta(microseconds=1)),
        *(event[name].encode() for name in ("tenant", "kind", "queue")),
    ]
    return hashlib.sha256(b"\0" + b"".join(struct.pack(">i", len(f)) + f for f in fields)).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def root_from_path(index: int, size: int, leaf: bytes, path: list[bytes]) -> bytes | None:
    """RFC 9162, section 2.1.3.2; None for a path that is not as long as this leaf's."""
    at, last, root = index, size - 1, leaf
    for node in path:
        if last == 0:
            return None
        if at & 1 or at == last:
            root = node_hash(node, root)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            root = node_hash(root, node)
        at, last = at >> 1, last >> 1
    return root if last == 0 and index < size else None


def is_consistent(old: int, size: int, old_root: bytes, root: bytes, path: list[bytes]) -> bool:
    """RFC 9162, section 2.1.4.2."""
    if old == size or not path or not 0 < old < size:
        return old == size and not path and old_root == root
    first, *rest = [old_root, *path] if old & (old - 1) == 0 else path
    at, last = old - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = now = first
    for node in rest:
        if last == 0:
            return False
        if at & 1 or at == last:
            before, now = node_hash(node, before), node_hash(node, now)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            now = node_hash(now, node)
        at, last = at >> 1, last >> 1
    return last == 0 and (before, now) == (old_root, root)


def read_head(head: dict[str, Any], key: str | None) -> tuple[str, int, bytes]:
    """Log, size and root of a signed note: c2sp.org/tlog-checkpoint."""
    text, _, signatures = head["note"].partition("\n\n")
    log, size, root = text.splitlines()[:3]
    if key is None:
        print("no --key: who made the head was NOT checked", file=sys.stderr)
    elif not any(signed(f"{text}\n", line.split()[2], key) for line in signatures.splitlines()):
        sys.exit(f"WRONG: the head over {size} events of {log} is not signed with this key")
    return log, int(size), base64.b64decode(root)


def signed(text: str, signature: str, key: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "text").write_text(text)
        Path(folder, "sig").write_bytes(base64.b64decode(signature)[4:])  # after the key's number
        verify = f"openssl pkeyutl -verify -rawin -in {folder}/text -sigfile {folder}/sig -pubin -inkey"
        return subprocess.run([*verify.split(), key], capture_output=True, check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("proof", help="as the query API answered it")
    parser.add_argument("--key", help="the signer's public key (PEM)")
    parser.add_argument("--since", help="an older head, which a consistency proof is held against")
    given = parser.parse_args()
    proof = json.loads(Path(given.proof).read_text())
    log, size, root = read_head(proof["head"], given.key)
    if given.since:
        _, old, before = read_head(json.loads(Path(given.since).read_text()), given.key)
        if not is_consistent(old, size, before, root, [base64.b64decode(node) for node in proof["path"]]):
            sys.exit(f"WRONG: the {size} events of {log} do not begin with the {old} of the older head")
        print(f"the {size} events of {log} begin with the {old} of the older head, unchanged")
    events = proof.get("events", [])
    given_as = [(event["originator_id"], event["version"]) for event in events]
    if "task_id" in proof and given_as != [(proof["task_id"], n + 1) for n in range(len(events) or 1)]:
        sys.exit(f"WRONG: these are not the events of task {proof['task_id']}, from its first one on")
    for event in events:
        index, path = event["position"] - 1, [base64.b64decode(node) for node in event["path"]]
        if root_from_path(index, size, leaf_hash(event), path) != root:
            sys.exit(f"WRONG: {event['topic']} is not what the log has at position {event['position']}")
        print(f"position {event['position']}: {event['topic']} is in {log}, under its head over {size}")


if __name__ == "__main__":
    main()
