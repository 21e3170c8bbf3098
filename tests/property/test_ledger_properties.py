"""Random leases, failures, crashes, late rows and restarts against a naive model of the same rules."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.cluster.backlog import Struck
from pipeline.cluster.ledger import MANY_CRASHES, Ledger
from pipeline.errors import Reason
from pipeline.output.history import Earlier, History, Key
from pipeline.records import VideoRef
from tests.unit.samples import make_ref

ATTEMPTS, STRIKES = 2, 3
RETRY_SECONDS, LONG = 8.0, 100.0  # time moves on by LONG only: every retry is due then, and none before
WORKERS = st.sampled_from(["w0", "w1", "w2"])
TOLD_BY_A_CRASH = (Reason.CRASHED_WORKER, Reason.GENERATION_TIMEOUT)


@dataclass
class Video:
    """What the model knows of one listed video of this run. ``state``: "" while it is not done."""

    ref: VideoRef
    state: str = ""
    failures: int = 0
    strikes: int = 0
    alone: bool = False
    due: float = 0.0


@dataclass
class Output:
    """What is on record, over all runs: rows, and failed attempts in order."""

    rows: list[Key] = field(default_factory=list)
    failed: dict[Key, list[tuple[Reason, bool]]] = field(default_factory=dict)

    def record(self, key: Key, reason: Reason, is_final: bool) -> None:
        self.failed.setdefault(key, []).append((reason, is_final))

    def final(self, key: Key) -> Reason | None:
        finals = [reason for reason, is_final in self.failed.get(key, []) if is_final]
        return finals[-1] if finals else None

    def history(self, key: Key) -> History:
        rows = self.failed.get(key, [])
        last_final = max((number for number, (_, is_final) in enumerate(rows, 1) if is_final), default=0)
        since = [reason in TOLD_BY_A_CRASH for reason, _ in rows[last_final:]]
        return History(len(rows), since.count(False), since.count(True))


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.output = Output()
        self.corpus: dict[str, VideoRef] = {}
        self.now = 0.0
        self._begin()
        for number, size in enumerate((3, 1, 2, 0)):
            ref = self.corpus[f"video-{number}"] = make_ref(number, size_bytes=size)
            self._list(ref)

    def _begin(self, heal: tuple[str, ...] | None = None, retry_failed: bool = False) -> None:
        self.ledger = Ledger(ATTEMPTS, STRIKES, retry_seconds=RETRY_SECONDS, retry_max_seconds=LONG)
        self.earlier = Earlier(self.output.rows, self.output, heal=heal, retry_failed=retry_failed)
        self.heal, self.retry_failed = heal, retry_failed
        self.listed: dict[Key, Video] = {}
        self.held: dict[str, dict[Key, bool]] = {}  # worker -> video -> started
        self.ever_held: list[tuple[str, Key]] = []
        self.crashes = 0  # in a row, without a row or a final failure between them

    @rule(number=st.integers(0, 6), size=st.integers(0, 5))
    def list_one(self, number: int, size: int) -> None:
        ref = self.corpus.setdefault(f"video-{number}", make_ref(number, size_bytes=size))
        if ref.key not in self.listed:
            self._list(ref)
        elif not self.listed[ref.key].state:
            assert not self.ledger.add(ref)

    def _list(self, ref: VideoRef) -> None:
        verdict, history = self.earlier.verdict(ref.key), self.earlier.history(ref.key)
        final, has_row = self.output.final(ref.key), ref.key in self.output.rows
        if self.heal is not None:
            wanted = final is not None and not has_row and (not self.heal or final.value in self.heal)
            assert verdict == ("new" if wanted else "unwanted")
        else:
            skipped = "indexed" if has_row else "failed" if final and not self.retry_failed else "new"
            assert verdict == skipped
        if verdict == "unwanted":
            return
        video = self.listed[ref.key] = Video(ref)
        if verdict == "new":
            past = self.output.history(ref.key)
            video.failures, video.strikes, video.alone = past.failures, past.strikes, past.strikes > 0
            assert self.ledger.add(ref, None, history)
        else:
            video.state = f"skipped_{verdict}"
            assert self.ledger.add(ref, verdict)

    @rule(number=st.integers(7, 9))
    def reject_one(self, number: int) -> None:
        ref = self.corpus.setdefault(f"video-{number}", make_ref(number, size_bytes=0))
        if ref.key in self.listed or self.earlier.verdict(ref.key) != "new":
            return
        self.listed[ref.key] = Video(ref, "failed")
        self.output.record(ref.key, Reason.TOO_LARGE, True)
        assert self.ledger.reject(ref)

    @rule()
    def wait(self) -> None:
        self.now += LONG

    @rule(worker=WORKERS, most=st.integers(1, 4))
    def lease(self, worker: str, most: int) -> None:
        mine = self.held.setdefault(worker, {})
        is_crisis = self.crashes >= MANY_CRASHES
        expected = self._expected(mine, 99 if is_crisis else most)
        lease = self.ledger.lease(worker, most, self.now)
        items = lease.items if lease else ()
        ranks = [self._rank(self.listed[item.key]) for item in items]
        assert ranks == expected if not is_crisis else bool(ranks) == bool(expected)
        if is_crisis:
            assert len(ranks) <= 1, "one at a time"
            assert set(ranks) <= set(expected), "from anywhere, but never a suspect before its turn"
        for item in items:
            video = self.listed[item.key]
            assert video.state == ""
            assert video.due <= self.now, "not before its time"
            assert all(item.key not in held for held in self.held.values()), "one holder at a time"
            assert item.attempt == len(self.output.failed.get(item.key, [])) + 1
            assert not video.alone or (len(items) == 1 and not mine), "a suspect is leased alone"
            self.ever_held.append((worker, item.key))
        mine.update({item.key: False for item in items})

    def _expected(self, mine: dict[Key, bool], most: int) -> list[tuple[int, int, int]]:
        """Ranks of what a worker that holds ``mine`` should get, in order."""
        everywhere = {key for held in self.held.values() for key in held}
        free = [
            video
            for key, video in self.listed.items()
            if not video.state and key not in everywhere and video.due <= self.now
        ]
        if any(self.listed[key].alone for key in mine):
            return []
        normal = sorted(self._rank(video) for video in free if not video.alone)[:most]
        suspects = sorted(self._rank(video) for video in free if video.alone)[:1]
        return normal or ([] if mine else suspects)

    def _rank(self, video: Video) -> tuple[int, int, int]:
        return (-video.strikes, video.failures, -video.ref.size_bytes)

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
        first = self.listed[key].state == ""
        assert self.ledger.complete(worker, key) == first
        if first:
            self.output.rows.append(key)
            self._settle(key, "indexed")

    @precondition(lambda self: self.ever_held)
    @rule(data=st.data(), reason=st.sampled_from([r for r in Reason if r not in TOLD_BY_A_CRASH]))
    def fail(self, data: st.DataObject, reason: Reason) -> None:
        self._fail(*data.draw(st.sampled_from(self.ever_held)), reason)

    @rule(
        worker=WORKERS,
        most=st.integers(1, 3),
        reason=st.sampled_from([Reason.READ_ERROR, Reason.OUT_OF_MEMORY]),
    )
    def lease_and_fail(self, worker: str, most: int, reason: Reason) -> None:
        """The history that makes retries, often enough to reach the last attempt."""
        self.lease(worker, most)
        for key in list(self.held[worker]):
            self._fail(worker, key, reason)
        self.lease(worker, most)  # what has just failed is not due, what must run alone is not given beside
        self.wait()
        self.lease(worker, most)

    def _fail(self, worker: str, key: Key, reason: Reason) -> None:
        holds, video = key in self.held.get(worker, {}), self.listed[key]
        is_final = self.ledger.fail(worker, key, reason, self.now)
        if not holds:
            assert not is_final
            return
        self.output.record(key, reason, is_final)
        video.failures += 1
        video.alone |= reason is Reason.OUT_OF_MEMORY
        assert is_final == (not reason.is_transient or video.failures >= ATTEMPTS)
        if is_final:
            self.crashes = 0
            self._settle(key, "failed")
        else:
            video.due = self.now + LONG
            del self.held[worker][key]

    @rule(worker=WORKERS, most=st.integers(1, 3), late_row=st.booleans())
    def lease_start_and_leave(self, worker: str, most: int, late_row: bool) -> None:
        """What was started and given back waits as if it had not been; a late row may settle it there."""
        self.lease(worker, most)
        keys = list(self.held[worker])
        for key in keys:
            assert self.ledger.start(worker, key)
        self.leave(worker)
        if late_row and keys:
            assert self.ledger.complete(worker, keys[0])
            self.output.rows.append(keys[0])
            self._settle(keys[0], "indexed")

    @rule(worker=WORKERS)
    def leave(self, worker: str) -> None:
        self.ledger.release(worker)
        self.held.pop(worker, None)

    @rule(worker=WORKERS, reason=st.sampled_from(TOLD_BY_A_CRASH), data=st.data())
    def crash(self, worker: str, reason: Reason, data: st.DataObject) -> None:
        held = self.held.pop(worker, {})
        started = {key for key, was_started in held.items() if was_started}
        culprit = data.draw(st.sampled_from([None, ("gone", "v"), *held]))
        blamed = {culprit} & started or started
        struck = self.ledger.crash(worker, culprit)
        assert {one.item.key for one in struck} == blamed
        self.crashes += bool(blamed)
        for one in struck:
            self._strike(one, reason)

    @rule(worker=WORKERS, data=st.data())
    def name_some(self, worker: str, data: st.DataObject) -> None:
        """A worker lists all that it holds, and from then on less, or what it never had."""
        mine = self.held.get(worker, {})
        named = data.draw(st.lists(st.sampled_from([("gone", "v"), *mine]), unique=True))
        assert self.ledger.forget(worker, list(mine), self.now, LONG) == []
        self.now += LONG
        assert self.ledger.forget(worker, named, self.now, LONG) == [], "not before the time is over"
        self.now += 2 * LONG
        forgotten = set(mine) - set(named)
        struck = self.ledger.forget(worker, named, self.now, LONG)
        assert {one.item.key for one in struck} == forgotten
        for one in struck:
            del mine[one.item.key]
            self._strike(one, Reason.CRASHED_WORKER)

    def _strike(self, struck: Struck, reason: Reason) -> None:
        video = self.listed[struck.item.key]
        assert struck.item.attempt == len(self.output.failed.get(struck.item.key, [])) + 1
        self.output.record(struck.item.key, reason, struck.is_final)
        video.strikes, video.alone = video.strikes + 1, True
        assert struck.is_final == (video.strikes >= STRIKES)
        if struck.is_final:
            self._settle(struck.item.key, "failed")

    @rule(worker=WORKERS, most=st.integers(1, 3), all_started=st.booleans(), data=st.data())
    def lease_and_crash(self, worker: str, most: int, all_started: bool, data: st.DataObject) -> None:
        """The history that makes suspects, often enough to reach quarantine."""
        self.lease(worker, most)
        for number, key in enumerate(list(self.held[worker])):
            if all_started or number == 0:
                assert self.ledger.start(worker, key)
                self.held[worker][key] = True
        self.crash(worker, Reason.CRASHED_WORKER, data)

    @rule(
        heal=st.sampled_from([None, None, (), ("corrupt",), ("crashed_worker", "read_error")]),
        retry_failed=st.booleans(),
    )
    def start_again(self, heal: tuple[str, ...] | None, retry_failed: bool) -> None:
        """The run is killed, and another one lists the same corpus."""
        self._begin(heal, retry_failed)
        for ref in list(self.corpus.values())[:7]:
            if int(ref.video_id.removeprefix("video-")) < 7:
                self._list(ref)

    def _settle(self, key: Key, state: str) -> None:
        self.listed[key].state = state
        self.crashes = 0 if state == "indexed" else self.crashes
        for held in self.held.values():
            held.pop(key, None)

    @invariant()
    def the_sum_agrees_with_the_model(self) -> None:
        counts, states = self.ledger.counts, [video.state for video in self.listed.values()]
        for state in ("indexed", "failed", "skipped_indexed", "skipped_failed"):
            assert getattr(counts, state) == states.count(state)
        assert counts.listed == len(self.listed)
        assert counts.leased == sum(len(held) for held in self.held.values())
        assert counts.accounted + counts.pending + counts.leased + counts.suspect == counts.listed
        assert 0 <= counts.waiting <= counts.pending
        assert min(asdict(counts).values()) >= 0
        assert counts.closes == self.ledger.is_done == all(states)
        assert self.ledger.num_open == states.count("")

    @invariant()
    def nothing_is_indexed_twice(self) -> None:
        assert len(set(self.output.rows)) == len(self.output.rows)

    def teardown(self) -> None:
        """One honest worker finishes whatever history left; then the sum closes."""
        self.ledger.release_all()
        while (lease := self.ledger.lease("last", 3, self.now + LONG)) is not None:
            for item in lease.items:
                assert self.ledger.complete("last", item.key)
        assert self.ledger.is_done
        assert self.ledger.counts.closes


LedgerMachine.TestCase.settings = settings(max_examples=70, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase
