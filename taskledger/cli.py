"""`taskledger <command>`: one command for each process, and `up` for all of them on this machine.

Everything heavy is imported by the command that needs it, the sides by name only: the plumbing
knows no side.
"""

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import typer

from events.errors import StoreUnavailable, TaskledgerError
from taskledger.lifecycle import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED, follow_supervisor

if TYPE_CHECKING:
    from taskledger.settings import Settings

SIDES: Final = {
    "command-api": "command_side.api.app",
    "query-api": "query_side.api.app",
    "dispatcher": "command_side.dispatcher.main",
    "worker": "command_side.worker.main",
    "projector": "projector.main",
    "webhooks": "command_side.webhooks.main",
    "sealer": "projector.sealer",
}
"""Process -> the module whose `run(settings)` it is."""

app = typer.Typer(
    name="taskledger",
    help="A task service whose only truth is an event log. Settings: TASKLEDGER__… or .env.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


keys = typer.Typer(name="keys", help="Master keys and what they wrap.", no_args_is_help=True)
app.add_typer(keys)


@app.command()
def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many worker processes.")] = 1,
) -> None:
    """Run everything on this machine: servers (unless DSNs are given), migrations, all processes."""
    from taskledger.supervisor import Supervisor

    Supervisor(_prepare("up"), workers=workers).run()


@app.command()
def migrate() -> None:
    """Bring the database to what this release needs. Safe twice, and from many machines at once."""
    from taskledger.database import migrate_when_reachable

    revision = migrate_when_reachable(_prepare("migrate").require_postgres())
    typer.echo(f"the database is at revision {revision}")


@app.command()
def restored() -> None:
    """After a restore of the database, or its failover to a copy that may lack the end: draw a new tag."""
    from taskledger.database import draw_tag_when_reachable

    before, now = draw_tag_when_reachable(_prepare("restored").require_postgres())
    typer.echo(
        f"the log was {before} and is {now}: positions of the old one are refused, Redis is filled anew."
        " Now run `taskledger verify`, and `taskledger rebuild` if the read tables differ"
    )


@app.command("command-api")
def command_api() -> None:
    """Serve the command API: POST /tasks and all else that changes a task."""
    _run("command-api")


@app.command("query-api")
def query_api() -> None:
    """Serve the query API: GET /tasks and all else that reads."""
    _run("query-api")


@app.command()
def dispatcher() -> None:
    """Hand queued tasks to workers, and sweep what is due or lost. One leads, others stand by."""
    _run("dispatcher")


@app.command()
def worker() -> None:
    """Run handlers."""
    _run("worker")


@app.command()
def projector() -> None:
    """Keep the read tables. One leads, others stand by."""
    _run("projector")


@app.command()
def webhooks() -> None:
    """Tell others over HTTP what happened to tasks. One leads, others stand by."""
    _run("webhooks")


@app.command()
def sealer() -> None:
    """Keep the signed tree over the log, by which a changed event is found. One leads, others stand by."""
    _run("sealer")


@app.command()
def rebuild(
    prune: Annotated[bool, typer.Option(help="Drop the generations that are no longer read.")] = False,
    rollback: Annotated[
        bool, typer.Option(help="Build nothing: go back to the generation before, brought level.")
    ] = False,
    projection: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="One of TASKLEDGER__PROJECTIONS, not the read tables."),
    ] = None,
) -> None:
    """Build the read tables afresh from the log, beside the live ones, and switch."""
    if prune and rollback:
        raise typer.BadParameter("there is no way back to what is dropped", param_hint="--prune")
    _once("projector.rebuild_command", "rebuild", prune=prune, go_back=rollback, projection=projection)


@app.command()
def verify(
    head: Annotated[
        Path | None, typer.Option(help="A head that was kept elsewhere, as GET /proof/head answered it.")
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="With which heads should be signed, if not the key that is set.")
    ] = None,
) -> None:
    """Check the log, what was sealed of it, and the read tables against a fresh fold of it. Exit code 1:
    differences."""
    _once("projector.verify", "verify", head=head, public_key=public_key)


@app.command()
def export(
    file: Annotated[Path | None, typer.Argument(help="Standard output if there is none.")] = None,
    task: Annotated[UUID | None, typer.Option(help="The id of one task.")] = None,
    whole: Annotated[bool, typer.Option("--all", help="The whole log.")] = False,
) -> None:
    """Write the log, or one task of it, as lines of JSON: every event, byte for byte as it is stored."""
    if (task is None) is not whole:
        raise typer.BadParameter("either --task ID or --all", param_hint="--task")
    _once("taskledger.archives", "export", function="run_export", task_id=task, file=file)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="As `taskledger export` wrote it.")],
) -> None:
    """Fill an empty log with what was exported. All or nothing; the log gets a new tag."""
    _once("taskledger.archives", "import", function="run_import", file=file)


@app.command()
def park(
    position: Annotated[int, typer.Argument(min=1, help="Where the projector stands, as it says.")],
    reason: Annotated[str, typer.Option(help="Kept with the event, for whoever looks later.")],
    by: Annotated[str | None, typer.Option(help="Your name, if not that of the login.")] = None,
) -> None:
    """Let the read tables go on without an event that they cannot apply. Its task stays as it was."""
    if not reason.strip():
        raise typer.BadParameter("say why", param_hint="--reason")
    _once("projector.park", "park", position=position, reason=reason.strip(), by=by)


@app.command()
def unpark(
    position: Annotated[int, typer.Argument(min=1, help="As `taskledger verify` lists it.")],
) -> None:
    """Apply a parked event, and all that its task missed since, with a release that can."""
    _once("projector.park", "unpark", position=position)


@app.command()
def erase(
    reason: Annotated[str, typer.Option(help="Kept for ever beside what is left. No names here.")],
    subject: Annotated[
        str | None, typer.Option(help="As in POST /tasks; - reads it from standard input.")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Whose subject it is. Alone: all data of the tenant.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Your name, if not that of the login.")] = None,
) -> None:
    """Make all text about a subject, or of a tenant, unreadable for ever, by destroying its key."""
    if subject is None and tenant is None:
        raise typer.BadParameter("say whose data: --subject or --tenant", param_hint="--subject")
    if not reason.strip():
        raise typer.BadParameter("say why", param_hint="--reason")
    if subject == "-":
        subject = sys.stdin.readline().rstrip("\r\n")
    if subject == "":
        raise typer.BadParameter("is empty", param_hint="--subject")
    _once(
        "taskledger.erasing",
        "erase",
        function="erase",
        subject=subject,
        tenant=tenant,
        reason=reason.strip(),
        by=by,
    )


@keys.command("new")
def new_key(file: Annotated[Path, typer.Argument(help="Must not exist yet.")]) -> None:
    """Make a master key, for TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE."""
    from taskledger import erasing

    raise typer.Exit(erasing.new(file))


@keys.command()
def rewrap() -> None:
    """Wrap every key with the present master key; the previous one is then needed no longer."""
    _once("taskledger.erasing", "keys", function="rewrap")


@keys.command()
def scrub() -> None:
    """Once more what `erase` does after an erasure, if it said that something was left."""
    _once("taskledger.erasing", "keys", function="scrub")


@app.command()
def check(
    url: Annotated[str, typer.Argument(help="As in http://127.0.0.1:8001; /health/ready if no path.")],
) -> None:
    """Ask a process whether it is ready. Exit code 1, and what is missing, if it is not."""
    from taskledger.health import ask

    missing = ask(url)
    if missing is not None:
        typer.echo(missing, err=True)
        raise typer.Exit(EXIT_FAILED)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("taskledger"))


def main() -> None:
    """The console script. What can be foreseen ends in one line and exit code 2, never in a trace."""
    follow_supervisor()
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 (compared with strings)
        sys.path.append(here)  # a user's own modules of handlers; last, so that none hides ours
    try:
        app()
    except TaskledgerError as error:
        print(f"taskledger: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception:
        logging.getLogger(__name__).critical("unforeseen error", exc_info=True)
        sys.exit(EXIT_FAILED)


def _prepare(process: str) -> "Settings":
    from taskledger.addresses import with_running_up
    from taskledger.settings import load_settings
    from taskledger.telemetry import configure_logging

    settings = load_settings()
    configure_logging(settings, process=process)
    return settings if process == "up" else with_running_up(settings)


def _side(module: str) -> Any:
    return importlib.import_module(module)


def _run(process: str) -> None:
    code = _side(SIDES[process]).run(_prepare(process))
    # Not sys.exit, which joins threads: a handler that overran its timeout may block one for ever.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code or 0)


def _once(module: str, process: str, *, function: str = "run", **options: Any) -> None:
    """A command that needs the database now and does not wait for it."""
    from psycopg import OperationalError

    settings = _prepare(process)
    try:
        code = getattr(_side(module), function)(settings, **options)
    except OperationalError as error:
        raise StoreUnavailable(f"PostgreSQL does not answer: {error}") from error
    raise typer.Exit(code or 0)
