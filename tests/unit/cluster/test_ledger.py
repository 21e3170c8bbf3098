"""The ledger: every video in exactly one place, whatever its workers do."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from pipeline.cluster.backlog import Counts, Lease, Struck
from pipeline.cluster.ledger import Ledger
from pipeline.errors import Reason
from pipeline.output.history import History
from tests.unit.samples import make_ref


def ledger_of(*sizes: int, attempts: int = 3) -> Ledger:
    ledger = Ledger(attempts)
    for number, size in enumerate(sizes):
        assert ledger.add(make_ref(number, size_bytes=size))
    return ledger


def take(ledger: Ledger, worker_id: str = "a", max_videos: int = 10, now: float = 0.0) -> Lease:
    lease = ledger.lease(worker_id, max_videos, now)
    assert lease is not None
    return lease


def ids(lease: Lease) -> list[str]:
    return [item.ref.video_id for item in lease.items]


def crash_with_started(ledger: Ledger, worker_id: str) -> list[str]:
    """Lease one video, start it, die; returns what that quarantined."""
    lease = take(ledger, worker_id, 1)
    assert ledger.start(worker_id, lease.items[0].key)
    return [struck.item.ref.video_id for struck in ledger.crash(worker_id) if struck.is_final]


def test_large_videos_first_ties_in_listing_order() -> None:
    assert ids(take(ledger_of(10, 30, 20, 30))) == ["video-1", "video-3", "video-2", "video-0"]


def test_a_lease_is_bounded_and_pickles() -> None:
    lease = take(ledger_of(1, 2, 3), max_videos=2)
    assert len(lease.items) == 2
    assert pickle.loads(pickle.dumps(lease)) == lease


def test_nothing_is_leased_twice() -> None:
    ledger = ledger_of(1, 2)
    take(ledger, "a")
    assert ledger.lease("b", 10, 0.0) is None
    assert not ledger.is_done


def test_an_id_that_is_not_done_is_not_listed_again() -> None:
    ledger = ledger_of(1)
    assert not ledger.add(make_ref(0))
    assert not ledger.add(make_ref(0), already="indexed")
    assert not ledger.reject(make_ref(0))
    take(ledger)
    assert not ledger.add(make_ref(0, version="other"))
    assert ledger.counts == Counts(listed=1, leased=1)


def test_a_video_that_is_done_leaves_nothing_but_a_count() -> None:
    ledger = ledger_of(1, 1, 1)
    ledger.add(make_ref(3), already="indexed")
    items = take(ledger).items
    ledger.complete("a", items[0].key)
    ledger.fail("a", items[1].key, Reason.CORRUPT, 0.0)
    assert ledger.num_open == 1
    ledger.complete("a", items[2].key)
    assert (ledger.num_open, ledger.counts.listed) == (0, 4)


def test_a_rejected_video_is_listed_and_failed_and_nobody_gets_it() -> None:
    ledger = Ledger(3)
    assert ledger.reject(make_ref(0))
    assert ledger.counts == Counts(listed=1, failed=1)
    assert ledger.lease("a", 1, 0.0) is None
    assert ledger.is_done


def test_skipped_videos_are_listed_and_never_leased() -> None:
    ledger = Ledger(3)
    ledger.add(make_ref(0), already="indexed")
    ledger.add(make_ref(1), already="failed")
    assert ledger.lease("a", 10, 0.0) is None
    assert ledger.counts == Counts(listed=2, skipped_indexed=1, skipped_failed=1)
    assert ledger.counts.closes
    assert ledger.is_done


def test_only_the_first_completion_counts() -> None:
    ledger = ledger_of(1)
    key = take(ledger).items[0].key
    assert ledger.complete("a", key)
    assert not ledger.complete("a", key)
    assert ledger.counts.indexed == 1


def test_a_late_row_counts_if_it_is_the_first() -> None:
    """A worker taken for dead delivers after all, while its video waits or is held by another."""
    ledger = ledger_of(1)
    key = take(ledger, "a").items[0].key
    ledger.release("a")
    assert ledger.complete("a", key)
    assert ledger.lease("b", 10, 0.0) is None
    assert ledger.is_done


def test_a_late_row_wins_over_the_second_holder() -> None:
    ledger = ledger_of(1)
    key = take(ledger, "a").items[0].key
    ledger.release("a")
    take(ledger, "b")
    assert ledger.complete("a", key)
    assert not ledger.holds("b", key)
    assert not ledger.start("b", key)
    assert not ledger.complete("b", key)
    assert not ledger.fail("b", key, Reason.CORRUPT, 0.0)
    assert ledger.counts == Counts(listed=1, indexed=1)


def test_permanent_failures_are_final_at_once() -> None:
    ledger = ledger_of(1)
    assert ledger.fail("a", take(ledger).items[0].key, Reason.CORRUPT, 0.0)
    assert ledger.counts == Counts(listed=1, failed=1)


def test_transient_failures_are_tried_again_after_all_first_attempts() -> None:
    ledger = ledger_of(99, 1)
    big = take(ledger, max_videos=1).items[0]
    assert big.attempt == 1
    assert not ledger.fail("a", big.key, Reason.READ_ERROR, 0.0)
    lease = take(ledger)
    assert ids(lease) == ["video-1", "video-0"]
    assert lease.items[1].attempt == 2


def test_attempts_are_bounded() -> None:
    ledger = ledger_of(1, attempts=3)
    outcomes = [ledger.fail("a", take(ledger).items[0].key, Reason.READ_ERROR, 0.0) for _ in range(3)]
    assert outcomes == [False, False, True]
    assert ledger.lease("a", 1, 0.0) is None
    assert ledger.counts.closes


def test_one_attempt_means_no_second() -> None:
    ledger = ledger_of(1, attempts=1)
    assert ledger.fail("a", take(ledger).items[0].key, Reason.READ_ERROR, 0.0)


def test_a_failure_from_who_does_not_hold_the_video_changes_nothing() -> None:
    ledger = ledger_of(1)
    key = take(ledger, "a").items[0].key
    assert not ledger.fail("b", key, Reason.CORRUPT, 0.0)
    assert ledger.holds("a", key)


def test_a_graceful_leave_strikes_nobody() -> None:
    ledger = ledger_of(1)
    lease = take(ledger)
    ledger.start("a", lease.items[0].key)
    ledger.release("a")
    assert ledger.counts == Counts(listed=1, pending=1)
    assert take(ledger, "b").items[0].attempt == 1


def test_a_crash_makes_suspects_of_what_was_started_only() -> None:
    ledger = ledger_of(3, 2, 1)
    lease = take(ledger)
    ledger.start("a", lease.items[0].key)
    assert ledger.crash("a") == [Struck(lease.items[0], is_final=False)]
    assert ledger.counts == Counts(listed=3, pending=2, suspect=1)


def test_suspects_come_last_and_alone() -> None:
    ledger = ledger_of(5, 4, 1)
    for item in take(ledger, "a", 2).items:
        ledger.start("a", item.key)
    ledger.crash("a")
    first = take(ledger, "b")
    assert ids(first) == ["video-2"]
    assert ledger.lease("b", 10, 0.0) is None, "holds another video, so no suspect"
    ledger.complete("b", first.items[0].key)
    alone = take(ledger, "b")
    assert ids(alone) == ["video-0"]
    assert alone.items[0].attempt == 2
    ledger.add(make_ref(9))
    assert ledger.lease("b", 10, 0.0) is None, "holds a suspect, so nothing beside it"
    assert ids(take(ledger, "c")) == ["video-9"]


def test_three_strikes_and_the_innocent_go_free() -> None:
    ledger = ledger_of(2, 1)
    for item in take(ledger, "w0").items:
        ledger.start("w0", item.key)
    assert not any(struck.is_final for struck in ledger.crash("w0"))
    assert crash_with_started(ledger, "w1") == []
    # The suspect with fewer strikes is not favoured: order is by failures and size, so it crashes again.
    assert crash_with_started(ledger, "w2") == ["video-0"]
    innocent = take(ledger, "w3")
    assert ids(innocent) == ["video-1"]
    assert ledger.complete("w3", innocent.items[0].key)
    assert ledger.counts == Counts(listed=2, indexed=1, failed=1)


def test_a_poison_file_is_quarantined_before_the_next_one_kills_a_worker() -> None:
    ledger = ledger_of(*[1] * 40)  # of one size, as files of unknown size are
    for _ in range(40):
        assert crash_with_started(ledger, "a") == []
    quarantined = [crash_with_started(ledger, "a") for _ in range(80)]
    assert quarantined[::2] == [[]] * 40
    assert sorted(quarantined[1::2]) == sorted([f"video-{number}"] for number in range(40))


def test_the_quarantined_video_says_which_attempt_it_was() -> None:
    ledger = ledger_of(1)
    crash_with_started(ledger, "a")
    crash_with_started(ledger, "b")
    lease = take(ledger, "c")
    ledger.start("c", lease.items[0].key)
    (struck,) = ledger.crash("c")
    assert (struck.item.attempt, struck.is_final) == (3, True)
    assert struck.item.ref == make_ref(0, size_bytes=1)


def test_a_transient_failure_of_a_suspect_keeps_it_suspect() -> None:
    ledger = ledger_of(1)
    crash_with_started(ledger, "a")
    assert not ledger.fail("b", take(ledger, "b").items[0].key, Reason.READ_ERROR, 0.0)
    ledger.add(make_ref(1))
    assert ids(take(ledger, "b")) == ["video-1"]
    assert ledger.counts == Counts(listed=2, leased=1, suspect=1)


def test_a_suspect_not_started_is_not_struck_again() -> None:
    ledger = ledger_of(1)
    crash_with_started(ledger, "a")
    for number in range(10):
        take(ledger, f"w{number}")
        assert ledger.crash(f"w{number}") == []
    assert ledger.counts.suspect == 1


def test_lease_age() -> None:
    ledger = ledger_of(1, 2)
    assert ledger.oldest_lease_age(5.0) == 0.0
    take(ledger, "a", 1, now=10.0)
    take(ledger, "b", 1, now=20.0)
    assert ledger.oldest_lease_age(30.0) == 20.0
    ledger.release("a")
    assert ledger.oldest_lease_age(30.0) == 10.0


def test_an_unknown_worker_may_leave() -> None:
    ledger_of(1).release("nobody")
    assert ledger_of(1).crash("nobody") == []


def test_a_crash_with_a_known_culprit_strikes_nobody_else() -> None:
    ledger = ledger_of(3, 2, 1)
    items = take(ledger).items
    for item in items[:2]:
        ledger.start("a", item.key)
    assert [struck.item for struck in ledger.crash("a", culprit=items[1].key)] == [items[1]]
    assert ledger.counts == Counts(listed=3, pending=2, suspect=1)


def test_a_culprit_that_the_worker_does_not_hold_clears_nobody() -> None:
    """Else a worker that names the wrong video could die with the right one for ever."""
    ledger = ledger_of(1)
    (item,) = take(ledger).items
    ledger.start("a", item.key)
    assert ledger.crash("a", culprit=("gone", "v")) == [Struck(item, is_final=False)]


def retrying() -> Ledger:
    ledger = Ledger(20, retry_seconds=2.0, retry_max_seconds=60.0)
    ledger.add(make_ref(0))
    return ledger


def wait_of(ledger: Ledger, now: float) -> float:
    """Fail the video at ``now``; seconds until it can be had again, to a hundredth."""
    assert not ledger.fail("a", take(ledger, now=now).items[0].key, Reason.READ_ERROR, now)
    waits = (step / 100 for step in range(7000))
    return next(wait for wait in waits if due(ledger, now + wait))


def due(ledger: Ledger, now: float) -> bool:
    lease = ledger.lease("probe", 1, now)
    ledger.release("probe")
    return lease is not None


def test_retries_wait_twice_as_long_each_time_up_to_the_limit() -> None:
    ledger = retrying()
    waits = [wait_of(ledger, 100.0 * number) for number in range(1, 8)]
    for number, wait in enumerate(waits):
        longest = min(2.0 * 2**number, 60.0)
        assert 0.75 * longest <= wait <= longest + 0.01


def test_the_run_does_not_end_while_a_retry_waits() -> None:
    ledger = retrying()
    ledger.fail("a", take(ledger).items[0].key, Reason.READ_ERROR, 0.0)
    assert ledger.lease("a", 1, 1.0) is None
    assert not ledger.is_done
    assert ledger.counts == Counts(listed=1, pending=1, waiting=1)
    assert take(ledger, now=2.0).items[0].attempt == 2


def test_what_failed_together_does_not_return_together() -> None:
    ledger = Ledger(3, retry_seconds=100.0, retry_max_seconds=100.0)
    for number in range(50):
        ledger.add(make_ref(number))
    for item in take(ledger, max_videos=50).items:
        ledger.fail("a", item.key, Reason.READ_ERROR, 0.0)
    returned = [len(ids(lease)) if (lease := ledger.lease("b", 50, 75.0 + s)) else 0 for s in range(26)]
    assert sum(returned) == 50
    assert max(returned) <= 10


def test_a_late_row_settles_a_retry_that_waits() -> None:
    ledger = retrying()
    (item,) = take(ledger).items
    ledger.fail("a", item.key, Reason.READ_ERROR, 0.0)
    assert ledger.complete("a", item.key)
    assert ledger.lease("a", 1, 1000.0) is None
    assert ledger.counts == Counts(listed=1, indexed=1)


def test_out_of_memory_is_tried_again_alone_and_is_no_strike() -> None:
    ledger = ledger_of(5, 1)
    big, small = take(ledger).items
    assert not ledger.fail("a", big.key, Reason.OUT_OF_MEMORY, 0.0)
    assert ledger.lease("a", 1, 1.0) is None, "holds another video"
    assert ledger.counts == Counts(listed=2, leased=1, suspect=1)
    ledger.complete("a", small.key)
    ledger.add(make_ref(2))
    assert ids(take(ledger, "b")) == ["video-2"]
    assert ids(take(ledger, "a")) == ["video-0"]
    ledger.start("a", big.key)
    assert ledger.crash("a") == [Struck(item=replace(big, attempt=2), is_final=False)], "the first strike"


def test_attempts_and_failures_of_earlier_runs_count() -> None:
    ledger = Ledger(3)
    ledger.add(make_ref(0), history=History(attempts=7, failures=2))
    (item,) = take(ledger).items
    assert item.attempt == 8
    assert ledger.fail("a", item.key, Reason.READ_ERROR, 0.0), "the third in a row"


def test_strikes_of_earlier_runs_count_and_the_video_runs_alone() -> None:
    ledger = Ledger(3, strikes=3)
    ledger.add(make_ref(0), history=History(attempts=2, strikes=2))
    ledger.add(make_ref(1))
    assert ids(take(ledger, "a")) == ["video-1"]
    (item,) = take(ledger, "b").items
    ledger.start("b", item.key)
    assert ledger.crash("b") == [Struck(item, is_final=True)]


def test_the_end_takes_everything_back() -> None:
    ledger = ledger_of(3, 2, 1)
    take(ledger, "a", 1)
    take(ledger, "b", 1)
    assert ledger.num_idle_workers() == 0
    ledger.release_all()
    assert ledger.counts == Counts(listed=3, pending=3)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], History()),
        ([("read_error", False), ("decode_crashed", False)], History(2, failures=2)),
        ([("crashed_worker", False), ("generation_timeout", False)], History(2, strikes=2)),
        ([("read_error", False), ("corrupt", True)], History(2)),
        ([("crashed_worker", True), ("read_error", False)], History(2, failures=1)),
    ],
)
def test_a_history_counts_since_the_last_final_failure(
    rows: list[tuple[str, bool]], expected: History
) -> None:
    history = History()
    for reason, is_final in rows:
        history = history.after(Reason(reason), is_final)
    assert history == expected


@pytest.mark.parametrize("bad", [0, -1])
def test_limits_below_one_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match=f"attempts = {bad}"):
        Ledger(bad)
    with pytest.raises(ValueError, match="max_videos"):
        ledger_of(1).lease("a", bad, 0.0)


def test_many_videos_pass_quickly() -> None:
    ledger = ledger_of(*range(20_000))
    done = 0
    while (lease := ledger.lease("a", 8, 0.0)) is not None:
        done += sum(ledger.complete("a", item.key) for item in lease.items)
    assert done == 20_000
    assert ledger.counts.closes
