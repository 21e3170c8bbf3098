"""Input and output in a store that fails in every way it can, while the corpus changes under the listing."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.checks import (
    Witness,
    blameless_victims,
    problems_at_the_end,
    problems_of_verify,
    read_output,
    watched,
)
from tests.chaos.corpus import Expected, colour_number, write_good
from tests.chaos.faulty_s3 import Fault, FaultyS3, Page, Pages, Rates
from tests.chaos.jobs import Driver, clean_environment, end_tree, settings
from tests.chaos.killer import Kind, fight, plan_kinds, settle
from tests.chaos.s3_server import BUCKET, S3Server, credentials, key_of
from tests.chaos.stub_engine import write_model

pytestmark = pytest.mark.chaos

CORPUS, OUTPUT = f"s3://{BUCKET}/videos", f"s3://{BUCKET}/out"
READ_SECONDS = 6.0  # a client's patience; stalls last longer
# A stall costs the client's whole patience: one for every two of each other kind.
KINDS = (*Fault, *(fault for fault in Fault if fault is not Fault.STALL))
KEYS_PER_PAGE = 40
NUM_EACH = 3  # keys of each change, on each side of the cursor
VIDEOS_PER_ROUND = 8
MAX_RUNS = 6  # that a store as bad as this may break, each going on where the last one ended
ROUNDS = (
    (Kind.WORKER, Kind.COORDINATOR),
    (Kind.DECODE_CHILD, Kind.DRIVER),
    (Kind.WORKER, Kind.DRIVER),
    (Kind.DECODE_CHILD, Kind.COORDINATOR),
    (Kind.DRIVER,),
)


def test_nothing_is_lost_or_doubled_on_a_failing_store(
    seed: int,
    scratch: Path,
    corpus: tuple[Path, Expected],
    server: S3Server,
    say: Callable[[str], None],
) -> None:
    root, listed = corpus
    server.upload(BUCKET, "videos", root)
    changes = _Changes(server, scratch, listed)
    model = write_model(scratch / "model", seconds_per_video=0.02)
    job = settings(CORPUS, OUTPUT, model, {"decoding.processes": 2, "output.part_seconds": 1.0})
    rates = Rates(share=0.12, stall_seconds=READ_SECONDS + 2.0, kinds=KINDS)
    pages = Pages("videos/", KEYS_PER_PAGE, changes)
    with FaultyS3(server.port, seed, rates, pages) as proxy, watched(OUTPUT) as witness:
        environment = clean_environment(scratch, credentials(proxy.url, READ_SECONDS))
        for number, kinds in enumerate(random.Random(seed).sample(ROUNDS, len(ROUNDS))):
            _killed_run(job, environment, kinds, f"{seed}/{number}", say)
            assert witness.look() == []
        _run_to_the_end(job, environment, witness, say)
        _run_to_the_end(job, environment, witness, say, heal=True)
    say(f"faults: {dict(proxy.faults)} in {proxy.requests.total()} requests; {changes.told}")
    assert changes.went_on, "the listing that was changed under went on to its next page"
    assert set(proxy.faults) == {fault.value for fault in Fault}, "every kind of fault has happened"
    output, expected = read_output(OUTPUT), changes.expected
    assert blameless_victims(output, expected, CORPUS) == []
    assert problems_at_the_end(output, expected, CORPUS) == []
    assert problems_of_verify(OUTPUT) == []


class _Changes:
    """Objects that come, go and change between the second and the third page of the first listing.

    Some of each lie before the cursor, some behind it. Those that go behind it are in no listing.
    """

    def __init__(self, server: S3Server, scratch: Path, listed: Expected) -> None:
        good = {key_of(name): colour for name, colour in listed.good.items()}
        hostile = {key_of(name): allowed for name, allowed in listed.hostile.items()}
        self.expected = Expected(good, hostile)
        self.went_on = False
        self.told = ""
        self._server, self._scratch = server, scratch
        self._changed_at: str | None = None  # the page's token
        self._next: set[str | None] = set()
        self._lock = threading.Lock()

    def __call__(self, page: Page) -> None:
        with self._lock:
            if self._changed_at is None and page.token and page.next_token:
                self._changed_at = page.token
                self._change(page.keys[-1].removeprefix("videos/"))
            if page.token is not None and page.token == self._changed_at:
                self._next.add(page.next_token)  # asked for again, the same page may have other keys
            self.went_on |= page.token in self._next

    def _change(self, cursor: str) -> None:
        good = self.expected.good
        before = [name for name in sorted(good) if name <= cursor]
        behind = [name for name in sorted(good) if name > cursor]
        for side, names in enumerate((before, behind)):
            gone, changed = names[1::7][:NUM_EACH], names[2::7][:NUM_EACH]
            for name in gone:
                self._server.delete(BUCKET, f"videos/{name}")
                if names is before:
                    self.expected.maybe[name] = good[name]
                del good[name]
            for number, name in enumerate(changed, NUM_EACH * side):
                old, new = good.pop(name), colour_number(320 + number)
                self.expected.replaced[name] = (old, new)
                self._put(name, new, padding_bytes=1000)  # of another size, whatever the encoder does
            for number in range(NUM_EACH):
                late = f"{'Az'[side]}/late{number}.mp4"
                good[late] = colour_number(330 + NUM_EACH * side + number)
                self._put(late, good[late])
        self.told = f"{len(before)} keys before the cursor, {len(behind)} behind it"

    def _put(self, name: str, colour: tuple[int, int, int], padding_bytes: int = 0) -> None:
        path = self._scratch / "late.mp4"
        write_good(path, colour, padding_bytes)
        self._server.put(BUCKET, f"videos/{name}", path.read_bytes())


def _killed_run(
    job: dict[str, object],
    environment: dict[str, str],
    kinds: tuple[Kind, ...],
    seed: str,
    say: Callable[[str], None],
) -> None:
    chance, began = random.Random(seed), time.monotonic()
    blows = plan_kinds(chance, kinds, VIDEOS_PER_ROUND)
    with Driver(job, environment) as driver:
        result = settle(driver, fight(driver, blows, chance))
        counts = driver.last("progress") or {}
        said = driver.tail()
    say(
        f"killed {', '.join(kind.value for kind in kinds)} after {counts.get('indexed', 0)} rows, "
        f"{time.monotonic() - began:.1f} s; {driver.last('broken') or ''}"
    )
    assert result.hits == Counter(kind.value for kind in kinds), said
    assert end_tree(result.left, 30.0) == []


def _run_to_the_end(
    job: dict[str, object],
    environment: dict[str, str],
    witness: Witness,
    say: Callable[[str], None],
    heal: bool = False,
) -> None:
    """As a scheduler would: again until it says that every input is accounted for."""
    for _ in range(MAX_RUNS):
        began = time.monotonic()
        with Driver(job, environment, heal=heal) as driver:
            status = driver.wait(300)
            said = driver.last("report") or driver.last("broken") or driver.last("refused") or {}
            say(f"run ended with {status} after {time.monotonic() - began:.1f} s: {said}")
            assert driver.last("refused") is None, "a failing store is no mistake of the user's"
        assert witness.look() == []
        if status == 0:
            return
    pytest.fail(f"no run out of {MAX_RUNS} came to its end")
