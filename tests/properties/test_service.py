"""Clients, workers, dispatcher and projector in any order, with lost replies, dead workers, zombies and an
emptied Redis: what the checker demands of a campaign on real servers holds after every such history."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from command_side.commands import CompleteTask, CreateTask
from tests.chaos.checker import check
from tests.properties.play import WORKERS, Ending, Play
from tests.properties.steps import creations, fail_commands, usual

kinds = st.sampled_from(["mark", "mark", "outside"])
wishes = creations(payload=st.none(), kind=kinds)
workers = st.integers(0, WORKERS - 1)
picks = st.integers(0, 5)
sizes = st.integers(1, 7)
replies = st.sampled_from(["arrives", "arrives", "arrives", "lost"])


def completed(attempt: int) -> CompleteTask:
    return CompleteTask(attempt, {"attempt": attempt})


class ServiceMachine(RuleBasedStateMachine):
    """Few rules, each of which draws a step, so that tasks get far enough to meet trouble."""

    def __init__(self) -> None:
        super().__init__()
        self.play = Play()

    @initialize(wanted=st.lists(wishes, min_size=1, max_size=2))
    def begin(self, wanted: list[CreateTask]) -> None:
        for command in wanted:
            self.play.submit(command, "arrives")

    @rule(
        worker=workers,
        kind=kinds,
        seconds=st.sampled_from([0, 20, 100_000]),
        acknowledges=st.booleans(),
        rival=st.booleans(),
    )
    def a_worker_starts(
        self, worker: int, kind: str, seconds: int, acknowledges: bool, rival: bool
    ) -> None:
        """Whatever has become due is queued and published before."""
        self.play.time_passes(seconds)
        self.play.relay(50)
        self.play.start(worker, kind, acknowledges=acknowledges, rival=rival)

    @rule(pick=picks, completes=st.sampled_from([True, False, False]), reply=replies, data=st.data())
    def an_attempt_ends(self, pick: int, completes: bool, reply: str, data: st.DataObject) -> None:
        ending: Ending = completed if completes else lambda n: data.draw(fail_commands(n))
        self.play.end(pick, ending, reply)

    @rule(
        what=st.sampled_from(
            ["submit", "submit again", "batch", "cancel", "requeue", "requeue", "discard"]
        ),
        command=wishes,
        pick=picks,
        reply=replies,
    )
    def a_client_asks(self, what: str, command: CreateTask, pick: int, reply: str) -> None:
        match what:
            case "submit":
                self.play.submit(command, reply)
            case "submit again":
                self.play.submit_again(pick, reply)
            case "batch":
                self.play.submit_batch(2, reply)
            case _:
                self.play.client_commands(pick, what, reply)

    @rule(pick=picks, session=st.sampled_from(["s0", "s1"]), waits=st.booleans())
    def a_session_reads(self, pick: int, session: str, waits: bool) -> None:
        self.play.read(pick, session, waits)

    @rule(
        what=st.sampled_from(
            ["death", "false death", "false death", "relay", "redis", "late sweep", "repeat"]
        ),
        worker=workers,
        limit=sizes,
    )
    def something_goes_wrong(self, what: str, worker: int, limit: int) -> None:
        match what:
            case "death":
                self.play.kill_a_worker(worker)
            case "false death":
                self.play.take_for_dead(limit)
            case "relay":
                self.play.kill_the_relay_before_its_commit(limit)
            case "redis":
                self.play.lose_redis()
            case "late sweep":
                self.play.sweep()
            case _:
                self.play.tell_again()

    @rule(who=st.sampled_from(["relay", "projector", "projector", "tailer", "queue"]), limit=sizes)
    def a_follower_moves(self, who: str, limit: int) -> None:
        match who:
            case "relay":
                self.play.relay(limit)
            case "projector":
                self.play.project(limit)
            case "tailer":
                self.play.tail(limit)
            case _:
                self.play.pause_a_queue(limit % 2 == 0)

    @invariant()
    def histories_are_legal(self) -> None:
        self.play.system.look()
        assert [h.flaw for h in self.play.system.histories.values() if h.flaw is not None] == []

    def teardown(self) -> None:
        """What is broken stays away; everything due must then end by itself, and every promise hold."""
        try:
            self.play.drain()
            assert check(self.play.evidence()).violations == []
        finally:
            self.play.system.close()


ServiceMachine.TestCase.settings = usual(examples=150, steps=50)
TestService: Any = ServiceMachine.TestCase
