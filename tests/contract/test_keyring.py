"""The keys in PostgreSQL: made once, forgotten soon, destroyed for good."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from events import erasure
from events.ciphers import MasterKey, MasterKeys, new_master_text
from events.envelopes import Erased, Place
from events.errors import ConfigurationError, KeyUnavailable, SealBroken
from events.keyring import REMEMBERED_SECONDS, PostgresKeyring, keys_now
from events.postgres_log import PostgresLogReader
from taskledger.encryption import Encryption
from taskledger.postgres import Pool, connect, connect_sync
from taskledger.settings import EncryptionSettings
from tests.support import eventually

ANN, BOB, TENANT = ("default", "Ann"), ("default", "Bob"), ("default", None)
MASTER = MasterKey.parse(new_master_text())
MASTERS = MasterKeys(MASTER)


@dataclass
class Keys:
    """A keyring whose questions are counted and whose clock stands."""

    dsn: str
    pool: Pool
    masters: MasterKeys = MASTERS
    now: float = 0.0
    asked: int = 0
    between: Callable[[], None] = field(default=lambda: None)
    """Called while a question is on its way."""

    def __post_init__(self) -> None:
        self.ring = PostgresKeyring(self.fetch, self.masters, clock=lambda: self.now)

    async def fetch(self, statement: str, parameters: Sequence[Any]) -> Sequence[Sequence[Any]]:
        self.asked += 1
        rows = await PostgresLogReader(self.pool).rows(statement, parameters)
        self.between()
        return rows

    async def id_of(self, owner: tuple[str, str | None]) -> UUID:
        return (await self.ring.owned([owner]))[owner].id

    def erase(self, subject: str | None = "Ann", tenant: str = "default") -> erasure.Erased | None:
        with self.connected() as connection:
            return erasure.erase(
                connection, self.masters, tenant=tenant, subject=subject, by="ops", reason="asked to"
            )

    def connected(self) -> Connection[TupleRow]:
        return connect_sync(self.dsn, name="test")

    def rows(self, query: str = "select * from taskledger.data_keys") -> list[TupleRow]:
        with self.connected() as connection:
            return connection.execute(query.encode()).fetchall()


@pytest.fixture
async def keys(dsn: str, pool: Pool) -> Keys:
    return Keys(dsn, pool)


async def test_each_owner_has_one_key_whoever_asks_and_however_many_at_once(keys: Keys) -> None:
    others = [Keys(keys.dsn, keys.pool) for _ in range(6)]
    owners = [ANN, BOB, TENANT, ("acme", "Ann"), ("acme", None)]
    found = await asyncio.gather(*(other.ring.owned(owners) for other in others for _ in range(3)))
    assert len({tuple(each[owner].id for owner in owners) for each in found}) == 1
    assert len({key.id for key in found[0].values()}) == 5
    assert len(keys.rows()) == 6  # and the one that hashes names


async def test_the_table_holds_neither_names_nor_keys_in_clear(keys: Keys) -> None:
    key = (await keys.ring.owned([ANN]))[ANN]
    text = "".join(str(row) for row in keys.rows("select to_json(k)::text from taskledger.data_keys k"))
    assert "Ann" not in text
    assert "ann" not in text.lower()
    assert key.secret.hex() not in text


async def test_what_is_remembered_is_not_asked_for_again_until_its_time_is_over(keys: Keys) -> None:
    key = (await keys.ring.owned([ANN]))[ANN]
    await keys.ring.keys([key.id])
    before = keys.asked
    for _ in range(10):
        assert await keys.ring.owned([ANN]) == {ANN: key}
        assert await keys.ring.keys([key.id]) == {key.id: key}
    assert keys.asked == before
    keys.now += REMEMBERED_SECONDS
    await keys.ring.owned([ANN])
    await keys.ring.keys([key.id])
    assert keys.asked == before + 2


async def test_an_erased_key_is_gone_and_the_name_gets_another_one(keys: Keys) -> None:
    before, bob = await keys.id_of(ANN), await keys.id_of(BOB)
    assert keys.erase() == erasure.Erased(1, 1)
    keys.ring.forget()
    found = await keys.ring.keys([before, bob])
    assert isinstance(found[before], Erased)
    assert not isinstance(found[bob], Erased)
    assert await keys.id_of(ANN) != before
    assert await keys.id_of(BOB) == bob
    (tomb,) = keys.rows(
        "select subject, master, wrapped, erased_by, reason from taskledger.data_keys"
        " where erased_at is not null"
    )
    assert tomb == (None, None, None, "ops", "asked to")


async def test_the_log_says_who_erased_and_why_but_not_whom(keys: Keys) -> None:
    key = await keys.id_of(ANN)
    keys.erase()
    ((originator, topic, state),) = keys.rows(
        "select originator_id, topic, convert_from(state, 'UTF8') from taskledger.task_events"
    )
    assert (originator, topic) == (key, "KeyErased")
    assert '"by":"ops","reason":"asked to"' in state
    assert "Ann" not in state


async def test_a_tenant_is_erased_with_all_its_subjects_and_no_other(keys: Keys) -> None:
    acme = [await keys.id_of(("acme", name)) for name in ("Ann", "Bob", None)]
    ours = await keys.id_of(ANN)
    assert keys.erase(None, "acme") == erasure.Erased(3, 1)
    keys.ring.forget()
    found = await keys.ring.keys([*acme, ours])
    assert [isinstance(found[id_], Erased) for id_ in (*acme, ours)] == [True, True, True, False]


async def test_there_is_nothing_to_erase_twice_or_of_somebody_unknown(keys: Keys) -> None:
    assert keys.erase() is None  # not even the key that hashes names
    await keys.id_of(ANN)
    assert keys.erase("Eve") is None
    assert keys.erase(None, "acme") is None
    assert keys.erase() is not None
    assert keys.erase() is None
    assert len(keys.rows("select from taskledger.task_events")) == 1


async def test_what_was_asked_before_an_erasure_is_not_remembered_after_it(keys: Keys) -> None:
    await keys.id_of(ANN)
    keys.ring.forget()

    def erased_meanwhile() -> None:
        keys.between = lambda: None
        keys.erase()
        keys.ring.forget()

    keys.between = erased_meanwhile
    stale = await keys.id_of(ANN)
    assert isinstance((await keys.ring.keys([stale]))[stale], Erased)
    assert await keys.id_of(ANN) != stale


async def test_every_process_forgets_as_soon_as_something_is_erased(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.keyring.REMEMBERED_SECONDS", 1e9)
    file = tmp_path / "master.key"
    file.write_text(new_master_text())
    encryption = Encryption(
        EncryptionSettings(master_key_file=file),
        PostgresLogReader(keys.pool).rows,
        lambda: connect(keys.dsn, name="test-keys"),
    )
    keys.masters = MasterKeys(MasterKey.parse(file.read_text()))
    watching = asyncio.create_task(encryption.watch())
    listening = "select from pg_stat_activity where datname = current_database() and query like 'listen %'"

    async def heard() -> bool:
        return bool(await asyncio.to_thread(keys.rows, listening))

    await eventually(heard)
    key = (await encryption.vault.owned([ANN]))[ANN]
    assert (await encryption.vault.keys([key.id]))[key.id] is not None
    await asyncio.to_thread(keys.erase)

    async def forgotten() -> bool:
        return isinstance((await encryption.vault.keys([key.id]))[key.id], Erased)

    await eventually(forgotten)
    watching.cancel()


async def test_another_master_key_opens_nothing_and_is_told_at_once(keys: Keys) -> None:
    id_ = await keys.id_of(ANN)
    other = Keys(keys.dsn, keys.pool, MasterKeys(MasterKey.parse(new_master_text())))
    assert await keys.ring.check()
    assert not await other.ring.check()
    with pytest.raises(KeyUnavailable):
        await other.ring.keys([id_])
    with pytest.raises(KeyUnavailable):
        await other.ring.owned([ANN])
    with other.connected() as connection:
        erasure.check_master(connection, keys.masters)
        with pytest.raises(ConfigurationError, match="MASTER_KEY_FILE: not the master key"):
            erasure.check_master(connection, other.masters)
        with pytest.raises(SealBroken):
            erasure.erase(connection, other.masters, tenant="default", subject="Ann", by="x", reason="y")


async def test_any_master_key_will_do_while_there_is_nothing_yet(keys: Keys) -> None:
    assert await keys.ring.check()
    with keys.connected() as connection:
        erasure.check_master(connection, keys.masters)


async def test_an_unknown_key_is_not_an_erased_one(keys: Keys) -> None:
    with pytest.raises(KeyUnavailable):
        await keys.ring.keys([uuid4(), await keys.id_of(ANN)])


async def test_keys_wrapped_anew_are_the_same_keys_and_need_the_old_master_no_longer(keys: Keys) -> None:
    place = Place("default", uuid4(), 1, "payload")
    owners = [ANN, *((f"t{n}", None) for n in range(7))]
    made = await keys.ring.owned(owners)
    envelope = made[ANN].seal(b"text", place)
    new = MasterKey.parse(new_master_text())
    with keys.connected() as connection:
        assert erasure.rewrap(connection, MasterKeys(new, MASTER)) == 9
        assert erasure.rewrap(connection, MasterKeys(new, MASTER)) == 0
    after = Keys(keys.dsn, keys.pool, MasterKeys(new))
    assert {o: k.id for o, k in (await after.ring.owned(owners)).items()} == {
        o: k.id for o, k in made.items()
    }
    assert (await after.ring.owned([ANN]))[ANN].open(envelope, place) == b"text"
    with after.connected() as connection, pytest.raises(SealBroken):
        erasure.rewrap(connection, MasterKeys(MasterKey.parse(new_master_text())))


async def test_a_thread_of_its_own_gets_the_same_keys(keys: Keys) -> None:
    ann, bob = await keys.id_of(ANN), await keys.id_of(BOB)
    keys.erase()
    with keys.connected() as connection:
        found = keys_now(connection, MASTERS, [ann, bob])
    assert isinstance(found[ann], Erased)
    assert found[bob] == (await keys.ring.keys([bob]))[bob]


async def test_it_is_told_when_somebody_still_sees_the_old_row(keys: Keys) -> None:
    await keys.id_of(ANN)
    with keys.connected() as seeing:
        seeing.autocommit = False
        seeing.execute("set transaction isolation level repeatable read")
        seeing.execute("select 1")
        keys.erase()
        with keys.connected() as connection:
            assert ["an open transaction" in line for line in erasure.rewrite(connection)] == [True]
        seeing.rollback()
    with keys.connected() as connection:
        assert erasure.rewrite(connection) == []


async def test_statistics_keep_nothing_of_a_key(keys: Keys) -> None:
    await keys.ring.owned([(f"t{n}", f"s{n}") for n in range(300)])
    with keys.connected() as connection:
        connection.execute("analyze taskledger.data_keys")
    found = keys.rows("select attname from pg_stats where tablename = 'data_keys'")
    assert {row[0] for row in found} & {"id", "subject", "wrapped"} == set()
    assert found


async def test_no_tombstone_can_hold_a_key_and_no_key_a_tombstones_marks(keys: Keys) -> None:
    await keys.id_of(ANN)
    for change in ("erased_at = now()", "wrapped = null", "subject = null, master = null, wrapped = null"):
        with pytest.raises(psycopg.errors.CheckViolation), keys.connected() as connection:
            connection.execute(f"update taskledger.data_keys set {change}".encode())
