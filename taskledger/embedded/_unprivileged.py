"""PostgreSQL refuses to run as root: under which identity root starts it instead."""

import os
import pwd
from functools import cache
from pathlib import Path

from events.errors import EmbeddedServerError
from taskledger.embedded._files import ELSEWHERE
from taskledger.embedded._processes import RunAs, succeeds

# In the new namespace root is called 1000. To the kernel it stays root, without privileges, so the files
# keep their owner and no other user can open them. Any number but 0 will do.
_NAMESPACE = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
_UNPRIVILEGED_USERS = ("postgres", "nobody")


def identity_for(home: Path, program: Path) -> RunAs:
    """Who runs PostgreSQL on the data folder `home`, which may not exist yet.

    Ourselves, unless we are root. Root: the owner of the data, if that is somebody else; ourselves in a
    user namespace; where those are refused, an existing unprivileged user, if one can get to the data.
    """
    owner = home.stat().st_uid if home.exists() else os.geteuid()
    if os.geteuid() != 0:
        if owner != os.geteuid():
            raise EmbeddedServerError(
                f"{home} belongs to another user (uid {owner}); run as that one, or {ELSEWHERE}"
            )
        return RunAs()
    if owner == 0 and _namespaces_work(program):
        return RunAs(prefix=_NAMESPACE)
    return _another_user(owner, home, program)


def _another_user(owner: int, home: Path, program: Path) -> RunAs:
    run_as = _user(owner) if owner else _first_existing_user()
    name = f"user {run_as.uid}" if owner else f"user {pwd.getpwuid(run_as.uid or 0).pw_name}"
    why = "PostgreSQL does not run as root"
    if not succeeds(["true"], run_as):
        raise EmbeddedServerError(
            f"{why}, nor may we become {name} here; run taskledger as an ordinary user"
        )
    if closed := _first_closed(program, run_as):
        raise EmbeddedServerError(
            f"{why}, and {name} cannot enter {closed}, where it is installed; use another user"
        )
    if closed := _first_closed(home, run_as):
        raise EmbeddedServerError(
            f"{why}, and {name} cannot enter {closed}; open it to that user, or {ELSEWHERE}"
        )
    return run_as


def _first_closed(path: Path, run_as: RunAs) -> Path | None:
    """The first folder on the way to `path` that the user cannot enter. We ask the kernel: where there are
    access lists, modes do not tell."""
    way = [folder for folder in (*reversed(path.parents), path) if folder.exists()]
    return next((folder for folder in way if not succeeds(["test", "-x", str(folder)], run_as)), None)


def _user(uid: int) -> RunAs:
    try:
        return RunAs(uid=uid, gid=pwd.getpwuid(uid).pw_gid)
    except KeyError:  # a number without a name will do, as in containers
        return RunAs(uid=uid, gid=uid)


def _first_existing_user() -> RunAs:
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in _UNPRIVILEGED_USERS:
        if name in known:
            return RunAs(uid=known[name].pw_uid, gid=known[name].pw_gid)
    raise EmbeddedServerError("PostgreSQL does not run as root; run taskledger as an ordinary user")


@cache
def _namespaces_work(program: Path) -> bool:
    return succeeds([*_NAMESPACE, str(program), "--version"])
