"""When workers are started, replaced, and given up; and the list of them."""

from __future__ import annotations

from pipeline.cluster.backlog import Counts
from pipeline.cluster.fleet import Fleet, Roster
from pipeline.cluster.ledger import Ledger
from pipeline.cluster.report import Progress, Totals
from tests.unit.samples import make_ref


def at(pending: int = 0, leased: int = 0, listing_done: bool = True) -> Progress:
    counts = Counts(listed=pending + leased, pending=pending, leased=leased)
    return Progress("run", counts, Totals(), listing_done, 1.0, 0.0, {}, None)


def start(fleet: Fleet, progress: Progress) -> list[str]:
    return [fleet.create() for _ in range(fleet.num_missing(progress))]


def test_all_wanted_workers_are_asked_for_at_once() -> None:
    fleet = Fleet(4, 600.0, now=0.0)
    assert len(start(fleet, at(pending=100))) == 4
    assert fleet.num_missing(at(pending=100)) == 0


def test_no_worker_without_work() -> None:
    assert Fleet(4, 600.0, now=0.0).num_missing(at()) == 0


def test_not_more_workers_than_videos_once_all_are_listed() -> None:
    assert Fleet(4, 600.0, now=0.0).num_missing(at(pending=2)) == 2
    assert Fleet(4, 600.0, now=0.0).num_missing(at(pending=2, listing_done=False)) == 4


def test_dead_worker_is_replaced_and_one_that_left_is_not() -> None:
    fleet = Fleet(3, 600.0, now=0.0)
    first, second, third = start(fleet, at(pending=9))
    for worker_id in (first, second, third):
        fleet.ready(worker_id)
    fleet.died(first, "killed", num_settled=0)
    assert len(start(fleet, at(pending=9))) == 1
    fleet.left(second)
    assert fleet.num_missing(at(pending=9)) == 0


def test_the_last_worker_is_always_replaced_while_videos_wait() -> None:
    fleet = Fleet(1, 600.0, now=0.0)
    (worker_id,) = start(fleet, at(pending=1))
    fleet.ready(worker_id)
    fleet.left(worker_id)
    assert fleet.num_missing(at(pending=1)) == 1


def test_gives_up_when_no_worker_can_start() -> None:
    fleet = Fleet(1, 600.0, now=0.0)
    for _ in range(3):
        assert fleet.verdict(at(pending=1), 1.0) is None
        (worker_id,) = start(fleet, at(pending=1))
        fleet.died(worker_id, "OSError: no such file", num_settled=0)
    assert fleet.num_missing(at(pending=1)) == 0
    assert "OSError: no such file" in str(fleet.verdict(at(pending=1), 1.0))


def test_a_worker_that_starts_forgives_those_that_did_not() -> None:
    fleet = Fleet(1, 600.0, now=0.0)
    for _ in range(2):
        (worker_id,) = start(fleet, at(pending=1))
        fleet.died(worker_id, "no", num_settled=0)
    (worker_id,) = start(fleet, at(pending=1))
    fleet.ready(worker_id)
    fleet.died(worker_id, "killed", num_settled=0)
    assert fleet.num_missing(at(pending=1)) == 1


def test_gives_up_when_none_is_ready_in_time() -> None:
    fleet = Fleet(2, 600.0, now=0.0)
    start(fleet, at(pending=5))
    assert fleet.verdict(at(pending=5), 599.0) is None
    assert "worker_start_seconds=600" in str(fleet.verdict(at(pending=5), 601.0))


def test_time_without_waiting_videos_does_not_count() -> None:
    fleet = Fleet(1, 600.0, now=0.0)
    assert fleet.verdict(at(listing_done=False), 5000.0) is None
    assert fleet.verdict(at(pending=1), 5100.0) is None


def test_gives_up_when_workers_die_without_getting_anywhere() -> None:
    fleet = Fleet(1, 600.0, now=0.0)
    for _ in range(30):
        assert fleet.verdict(at(pending=9), 1.0) is None
        (worker_id,) = start(fleet, at(pending=9))
        fleet.ready(worker_id)
        fleet.died(worker_id, "killed", num_settled=0)
    assert "30 workers in a row" in str(fleet.verdict(at(pending=9), 1.0))


def test_a_machine_whose_workers_die_does_not_end_the_run_of_one_at_a_long_video() -> None:
    fleet = Fleet(2, 600.0, now=0.0)
    survivor, bad = start(fleet, at(pending=9))
    fleet.ready(survivor)
    for _ in range(40):
        fleet.ready(bad)
        fleet.died(bad, "no decoder starts here", num_settled=0)
        assert fleet.verdict(at(pending=9), 1.0) is None
        (bad,) = start(fleet, at(pending=9))
    fleet.died(survivor, "killed", num_settled=0)
    assert "41 workers in a row" in str(fleet.verdict(at(pending=9), 1.0))


def test_many_files_that_kill_workers_do_not_end_the_run() -> None:
    """A hundred that do, and larger than all others, so first in line; two workers."""
    ledger, fleet, now = Ledger(3, 3), Fleet(2, 600.0, now=0.0), 0.0
    for number in range(150):
        assert ledger.add(make_ref(number, size_bytes=1 + (number < 100)))
    poison = {make_ref(number).video_id for number in range(100)}
    settled = 0
    while not ledger.is_done:
        counts = ledger.counts
        progress = Progress("run", counts, Totals(), True, 1.0, 0.0, {}, None)
        assert fleet.verdict(progress, now) is None
        for worker_id in start(fleet, progress):
            fleet.ready(worker_id)
        for worker_id in sorted(fleet.alive):
            lease = ledger.lease(worker_id, 2, now)
            for item in lease.items if lease else ():
                assert ledger.start(worker_id, item.key)
                if item.ref.video_id in poison:
                    settled += sum(struck.is_final for struck in ledger.crash(worker_id, item.key))
                    fleet.died(worker_id, "killed", num_settled=settled)
                    break
                settled += ledger.complete(worker_id, item.key)
    assert (ledger.counts.indexed, ledger.counts.failed) == (50, 100)


def test_many_workers_that_die_at_once_with_their_machines_are_replaced() -> None:
    fleet = Fleet(200, 600.0, now=0.0)
    for worker_id in start(fleet, at(pending=999)):
        fleet.ready(worker_id)
        fleet.died(worker_id, "node died", num_settled=0)
    assert fleet.verdict(at(pending=999), 1.0) is None
    assert fleet.num_missing(at(pending=999)) == 200


def test_a_machine_where_no_worker_starts_does_not_keep_the_others_from_being_replaced() -> None:
    fleet = Fleet(2, 600.0, now=0.0)
    good, bad = start(fleet, at(pending=9))
    fleet.ready(good)
    fleet.died(bad, "no disk space", num_settled=0)
    for _ in range(2):
        (bad,) = start(fleet, at(pending=9))
        fleet.died(bad, "no disk space", num_settled=0)
    assert fleet.num_missing(at(pending=9)) == 0, "given up, while the other one works"
    fleet.died(good, "segfault", num_settled=5)
    assert fleet.verdict(at(pending=9), 1.0) is None
    assert fleet.num_missing(at(pending=9)) == 2


def test_crashes_between_finished_videos_are_borne() -> None:
    fleet = Fleet(1, 600.0, now=0.0)
    for number in range(100):
        (worker_id,) = start(fleet, at(pending=9))
        fleet.ready(worker_id)
        fleet.died(worker_id, "killed", num_settled=number)
    assert fleet.verdict(at(pending=9), 1.0) is None


def test_nobody_comes_back_to_the_roster() -> None:
    roster = Roster(60.0, 600.0)
    roster.register("a")
    assert not roster.is_ready("a")
    assert roster.ready("a", 5.0)
    assert roster.end("a", "lost")
    assert not roster.ready("a", 9.0)
    assert not roster.end("a", "left"), "known already"
    assert (roster.lost, roster.counts, roster.first_ready) == (("a",), {"lost": 1}, 5.0)


def test_work_ends_idleness() -> None:
    roster = Roster(60.0, 600.0)
    assert not roster.idle_too_long("a", 0.0)
    assert not roster.idle_too_long("a", 30.0)
    assert roster.idle_too_long("a", 31.0)
    roster.busy("a")
    assert not roster.idle_too_long("a", 32.0)


def test_a_worker_is_started_for_a_retry_that_waits() -> None:
    fleet = Fleet(4, 600.0, now=0.0)
    counts = Counts(listed=1, pending=1, waiting=1)
    assert fleet.num_missing(Progress("run", counts, Totals(), True, 1.0, 0.0, {}, None)) == 1


def test_a_worker_whose_machine_cannot_do_the_work_is_not_replaced_while_others_live() -> None:
    """Else each replacement would load its model there only to end at once, as long as the run goes on."""
    fleet = Fleet(2, 600.0, now=0.0)
    good, bad = start(fleet, at(pending=9))
    fleet.ready(good)
    fleet.ready(bad)
    fleet.died(bad, "decoding.cache_dir cannot be written", num_settled=3, is_unfit=True)
    assert fleet.num_missing(at(pending=9)) == 0
    fleet.died(good, "killed", num_settled=5)
    assert fleet.num_missing(at(pending=9)) == 1, "the last one always is"


def test_only_so_many_different_losses_are_kept() -> None:
    roster = Roster(60.0, 600.0)
    for number in range(100):
        roster.note(f"died at {number}")
        roster.note("no disk")
    assert (len(roster.losses), roster.losses["no disk"]) == (20, 100)


def test_a_silent_worker_is_given_up_and_only_that() -> None:
    roster = Roster(silence_seconds=26.0, call_seconds=600.0)
    for name in "abc":
        roster.register(name)
    roster.ready("a", 10.0)
    roster.ready("b", 20.0)
    roster.heard("a", 25.0)
    roster.heard("c", 1.0)
    assert roster.silent(46.0) == {}
    assert roster.silent(50.0) == {"b": "no sign of life for 26 s"}, "c still loads its model"
    assert list(roster.silent(52.0)) == ["a", "b"]
    roster.forgive_silence(50.0)
    assert roster.silent(76.0) == {}
    roster.end("b", "lost")
    assert list(roster.silent(1000.0)) == ["a"]


def test_a_worker_that_never_comes_back_from_the_model_is_given_up() -> None:
    roster = Roster(silence_seconds=26.0, call_seconds=600.0)
    assert roster.stuck(600.0) is None
    assert roster.stuck(600.5) == "the model was at it for more than limits.generation_seconds=600"
