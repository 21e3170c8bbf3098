"""The ledger: every video in exactly one place, whatever its workers do."""

from __future__ import annotations

import pickle

import pytest

from pipeline.ledger import Counts, Lease, Ledger
from pipeline.records import Reason
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
    return [video.ref.video_id for video in ledger.release(worker_id, crashed=True)]


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


def test_duplicate_ids_are_refused_whatever_became_of_the_first() -> None:
    ledger = ledger_of(1)
    assert not ledger.add(make_ref(0))
    ledger.complete("a", take(ledger).items[0].key)
    assert not ledger.add(make_ref(0))
    assert not ledger.add(make_ref(0), already="indexed")
    assert ledger.counts == Counts(listed=1, indexed=1)


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
    ledger.release("a", crashed=False)
    assert ledger.complete("a", key)
    assert ledger.lease("b", 10, 0.0) is None
    assert ledger.is_done


def test_a_late_row_wins_over_the_second_holder() -> None:
    ledger = ledger_of(1)
    key = take(ledger, "a").items[0].key
    ledger.release("a", crashed=False)
    take(ledger, "b")
    assert ledger.complete("a", key)
    assert not ledger.holds("b", key)
    assert not ledger.start("b", key)
    assert not ledger.complete("b", key)
    assert not ledger.fail("b", key, Reason.CORRUPT)
    assert ledger.counts == Counts(listed=1, indexed=1)


def test_permanent_failures_are_final_at_once() -> None:
    ledger = ledger_of(1)
    assert ledger.fail("a", take(ledger).items[0].key, Reason.CORRUPT)
    assert ledger.counts == Counts(listed=1, failed=1)


def test_transient_failures_are_tried_again_after_all_first_attempts() -> None:
    ledger = ledger_of(99, 1)
    big = take(ledger, max_videos=1).items[0]
    assert big.attempt == 1
    assert not ledger.fail("a", big.key, Reason.READ_ERROR)
    lease = take(ledger)
    assert ids(lease) == ["video-1", "video-0"]
    assert lease.items[1].attempt == 2


def test_attempts_are_bounded() -> None:
    ledger = ledger_of(1, attempts=3)
    outcomes = [ledger.fail("a", take(ledger).items[0].key, Reason.READ_ERROR) for _ in range(3)]
    assert outcomes == [False, False, True]
    assert ledger.lease("a", 1, 0.0) is None
    assert ledger.counts.closes


def test_one_attempt_means_no_second() -> None:
    ledger = ledger_of(1, attempts=1)
    assert ledger.fail("a", take(ledger).items[0].key, Reason.READ_ERROR)


def test_a_failure_from_who_does_not_hold_the_video_changes_nothing() -> None:
    ledger = ledger_of(1)
    key = take(ledger, "a").items[0].key
    assert not ledger.fail("b", key, Reason.CORRUPT)
    assert ledger.holds("a", key)


def test_a_graceful_leave_strikes_nobody() -> None:
    ledger = ledger_of(1)
    lease = take(ledger)
    ledger.start("a", lease.items[0].key)
    assert ledger.release("a", crashed=False) == []
    assert ledger.counts == Counts(listed=1, pending=1)
    assert take(ledger, "b").items[0].attempt == 1


def test_a_crash_makes_suspects_of_what_was_started_only() -> None:
    ledger = ledger_of(3, 2, 1)
    lease = take(ledger)
    ledger.start("a", lease.items[0].key)
    assert [video.key for video in ledger.started_by("a")] == [lease.items[0].key]
    assert ledger.release("a", crashed=True) == []
    assert ledger.counts == Counts(listed=3, pending=2, suspect=1)


def test_suspects_come_last_and_alone() -> None:
    ledger = ledger_of(5, 4, 1)
    for item in take(ledger, "a", 2).items:
        ledger.start("a", item.key)
    ledger.release("a", crashed=True)
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
    assert ledger.release("w0", crashed=True) == []
    assert crash_with_started(ledger, "w1") == []
    # The suspect with fewer strikes is not favoured: order is by failures and size, so it crashes again.
    assert crash_with_started(ledger, "w2") == ["video-0"]
    innocent = take(ledger, "w3")
    assert ids(innocent) == ["video-1"]
    assert ledger.complete("w3", innocent.items[0].key)
    assert ledger.counts == Counts(listed=2, indexed=1, failed=1)


def test_the_quarantined_video_says_which_attempt_it_was() -> None:
    ledger = ledger_of(1)
    crash_with_started(ledger, "a")
    crash_with_started(ledger, "b")
    lease = take(ledger, "c")
    ledger.start("c", lease.items[0].key)
    (quarantined,) = ledger.release("c", crashed=True)
    assert quarantined.attempt == 3
    assert quarantined.ref == make_ref(0, size_bytes=1)


def test_a_transient_failure_of_a_suspect_keeps_it_suspect() -> None:
    ledger = ledger_of(1)
    crash_with_started(ledger, "a")
    assert not ledger.fail("b", take(ledger, "b").items[0].key, Reason.READ_ERROR)
    assert ledger.counts == Counts(listed=1, suspect=1)


def test_a_suspect_not_started_is_not_struck_again() -> None:
    ledger = ledger_of(1)
    crash_with_started(ledger, "a")
    for number in range(10):
        take(ledger, f"w{number}")
        assert ledger.release(f"w{number}", crashed=True) == []
    assert ledger.counts.suspect == 1


def test_silence_and_lease_age() -> None:
    ledger = ledger_of(1, 2)
    assert ledger.oldest_lease_age(5.0) == 0.0
    take(ledger, "a", 1, now=10.0)
    take(ledger, "b", 1, now=20.0)
    ledger.seen("a", 25.0)
    assert ledger.oldest_lease_age(30.0) == 20.0
    assert ledger.silent_workers(50.0, 26.0) == ["b"]
    ledger.release("a", crashed=False)
    assert ledger.oldest_lease_age(30.0) == 10.0


def test_an_unknown_worker_may_leave() -> None:
    assert ledger_of(1).release("nobody", crashed=True) == []


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
