"""Random leases, completions, failures, crashes and late rows against a naive model of the same rules."""

from __future__ import annotations

from dataclasses import asdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.ledger import Key, Ledger
from pipeline.records import Reason
from tests.unit.samples import make_ref

ATTEMPTS = 2
STRIKES = 3
WORKERS = st.sampled_from(["w0", "w1", "w2"])


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(ATTEMPTS, STRIKES)
        self.listed: dict[Key, str] = {}  # final state once known, else ""
        self.held: dict[str, dict[Key, bool]] = {}  # worker -> video -> started
        self.ever_held: list[tuple[str, Key]] = []
        self.tries: dict[Key, int] = {}
        self.strikes: dict[Key, int] = {}
        self.now = 0.0

    @rule(
        number=st.integers(0, 6),
        size=st.integers(0, 5),
        already=st.sampled_from([None, None, "indexed", "failed"]),
    )
    def add(self, number: int, size: int, already: str | None) -> None:
        ref = make_ref(number, size_bytes=size)
        new = ref.key not in self.listed
        assert self.ledger.add(ref, already) == new  # type: ignore[arg-type]
        if new:
            self.listed[ref.key] = f"skipped_{already}" if already else ""

    @rule(worker=WORKERS, most=st.integers(1, 4))
    def lease(self, worker: str, most: int) -> None:
        self.now += 1.0
        mine = self.held.setdefault(worker, {})
        lease = self.ledger.lease(worker, most, self.now)
        if lease is None:
            everywhere = {key for held in self.held.values() for key in held}
            free = [key for key, state in self.listed.items() if not state and key not in everywhere]
            blocked = any(self.strikes.get(key) for key in mine)
            assert blocked or all(self.strikes.get(key) and mine for key in free)
            return
        keys = [item.key for item in lease.items]
        assert len(set(keys)) == len(keys) <= most
        suspects = [key for key in keys if self.strikes.get(key)]
        assert not suspects or (len(keys) == 1 and not mine), "a suspect is leased alone"
        assert not any(self.strikes.get(key) for key in mine), "nothing beside a suspect"
        for item in lease.items:
            assert self.listed[item.key] == ""
            assert all(item.key not in held for held in self.held.values()), "one holder at a time"
            self.tries[item.key] = self.tries.get(item.key, 0) + 1
            assert item.attempt <= ATTEMPTS + STRIKES - 1
            mine[item.key] = False
            self.ever_held.append((worker, item.key))
        if suspects:
            self.add(100 + len(self.listed), 1, None)
            assert self.ledger.lease(worker, most, self.now) is None, "nothing beside a suspect"

    @precondition(lambda self: self.ever_held)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        worker, key = data.draw(st.sampled_from(self.ever_held))
        holds = key in self.held.get(worker, {})
        assert self.ledger.start(worker, key) == holds
        if holds:
            self.held[worker][key] = True

    @precondition(lambda self: self.ever_held)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        """Also late: by workers that lost the lease or died."""
        worker, key = data.draw(st.sampled_from(self.ever_held))
        first = self.listed[key] == ""
        assert self.ledger.complete(worker, key) == first
        if first:
            self._settle(key, "indexed")

    @precondition(lambda self: self.ever_held)
    @rule(data=st.data(), reason=st.sampled_from(list(Reason)))
    def fail(self, data: st.DataObject, reason: Reason) -> None:
        worker, key = data.draw(st.sampled_from(self.ever_held))
        holds = key in self.held.get(worker, {})
        is_final = self.ledger.fail(worker, key, reason)
        assert holds or not is_final
        if is_final:
            self._settle(key, "failed")
        elif holds:
            assert reason.is_transient
            del self.held[worker][key]

    @rule(worker=WORKERS, crashed=st.booleans())
    def release(self, worker: str, crashed: bool) -> None:
        held = self.held.pop(worker, {})
        quarantined = {video.key for video in self.ledger.release(worker, crashed)}
        for key, started in held.items():
            self.strikes[key] = self.strikes.get(key, 0) + (crashed and started)
            assert (key in quarantined) == (self.strikes[key] >= STRIKES)
            if key in quarantined:
                self._settle(key, "failed")
        assert quarantined <= held.keys()

    @rule(worker=WORKERS, most=st.integers(1, 3), all_started=st.booleans())
    def lease_and_crash(self, worker: str, most: int, all_started: bool) -> None:
        """The history that makes suspects, often enough to reach quarantine."""
        self.lease(worker, most)
        for number, key in enumerate(list(self.held[worker])):
            if all_started or number == 0:
                assert self.ledger.start(worker, key)
                self.held[worker][key] = True
        self.release(worker, crashed=True)

    def _settle(self, key: Key, state: str) -> None:
        self.listed[key] = state
        for held in self.held.values():
            held.pop(key, None)

    @invariant()
    def the_sum_agrees_with_the_model(self) -> None:
        counts = self.ledger.counts
        for state in ("indexed", "failed", "skipped_indexed", "skipped_failed"):
            assert getattr(counts, state) == list(self.listed.values()).count(state)
        assert counts.listed == len(self.listed)
        assert counts.leased == sum(len(held) for held in self.held.values())
        assert sum(asdict(counts).values()) == 2 * counts.listed, "every video is in exactly one state"
        assert min(asdict(counts).values()) >= 0
        assert counts.closes == all(self.listed.values())

    def teardown(self) -> None:
        """One honest worker finishes whatever history left; then the sum closes."""
        for worker in list(self.held):
            self.release(worker, crashed=False)
        while (lease := self.ledger.lease("last", 3, self.now)) is not None:
            for item in lease.items:
                assert self.ledger.complete("last", item.key)
        assert self.ledger.is_done
        assert self.ledger.counts.closes


LedgerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase
