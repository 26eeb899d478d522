"""Is a tally what the log says? Part of `taskledger verify`, in its snapshot."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from psycopg import Connection
from psycopg.rows import TupleRow

from events.codec import EventMapper
from projector import generations
from projector.follower import next_events
from projector.parking import parked
from projector.tally import Key, Tally
from projector.tally_view import Facts
from projector.view import schema_name


def tally_differences(connection: Connection[TupleRow], tally: Tally) -> Iterator[str]:
    """A line each. Memory grows with the tally, not with the log."""
    generation = generations.live(connection, tally.definition)
    if generation is None:
        yield f"projection {tally.name}: there is no live generation yet"
        return
    if not generation.is_ours:
        other = f"generation {generation.number} has another definition"
        yield f"projection {tally.name}: {other}: not compared"
        return
    totals: defaultdict[Key, Counter[int]] = defaultdict(Counter)
    facts, passed_over, position = Facts(EventMapper()), parked(connection), 0
    while recorded := next_events(connection, position, generation.checkpoint)[1]:
        found, stopped = facts.of(connection, recorded, passed_over)
        for key, amounts in tally.fold(found).items():
            totals[key].update(dict(enumerate(amounts)))
        if stopped is not None:
            yield f"log: {stopped}"
            return
        position = recorded[-1].id
    places = range(len(tally.sums))
    wanted = {key: tuple(counter[place] for place in places) for key, counter in totals.items()}
    columns = ", ".join((*tally.keys, *tally.sums))
    rows = connection.execute(
        f"select {columns} from {schema_name(generation.number)}.{tally.name}".encode()
    )
    there = {row[: len(tally.keys)]: row[len(tally.keys) :] for row in rows}
    for key in sorted(wanted.keys() | there.keys()):
        if wanted.get(key) != there.get(key):
            name = "/".join(map(str, key))
            yield f"{tally.name} {name}: is {there.get(key)}, the log says {wanted.get(key)}"
