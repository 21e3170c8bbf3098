"""Sets of millions of keys, and what earlier runs say about a video: exact, small, and quick to ask."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline.errors import Reason, UserError
from pipeline.output.failed_so_far import FailedSoFar
from pipeline.output.history import History
from pipeline.output.keyset import DIGEST_BYTES, KeySet, SortedDigests, digest, digests_of
from pipeline.output.store import OutputStore
from pipeline.stores.storage import Storage
from tests.unit.samples import FINGERPRINT, make_failure, make_ref, make_row

KEYS = [(f"video-{number}", f"v{number % 7}") for number in range(5000)]


def test_what_was_put_in_is_in_and_nothing_else() -> None:
    keys = KeySet.of(KEYS[::2])
    assert len(keys) == 2500
    assert all((key in keys) == (number % 2 == 0) for number, key in enumerate(KEYS))
    assert ("video-0", "another") not in keys
    assert ("video-0", "v0") not in KeySet()


def test_the_same_key_twice_counts_once() -> None:
    assert len(KeySet.of([*KEYS, *KEYS[:100]])) == len(KEYS)


def test_sixteen_bytes_for_each_key() -> None:
    assert KeySet.of(KEYS).num_bytes == DIGEST_BYTES * len(KEYS)


def test_columns_give_the_digests_of_their_rows() -> None:
    ids, versions = zip(*KEYS[:10], ("", ""), ("\u00fc\n\U0001f3ac", "v"), strict=True)
    columns = [pa.chunked_array([list(ids[:4]), list(ids[4:])]), pa.chunked_array([list(versions)])]
    expected = b"".join(digest(key) for key in zip(ids, versions, strict=True))
    assert digests_of(*columns) == expected
    assert digests_of(*(column.slice(3, 5) for column in columns)) == expected[48:128]
    assert digests_of(*(column.slice(0, 0) for column in columns)) == b""


def test_the_border_between_id_and_version_counts() -> None:
    assert digest(("a", "bc")) != digest(("ab", "c"))
    assert digest(("a\0b", "c")) != digest(("a", "c\0b"))


def test_a_name_that_is_not_unicode_is_found_as_it_was_written(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    store.write_rows([make_row(video_id="\udcff.mp4", version="v")])
    assert ("\udcff.mp4", "v") in store.committed(FINGERPRINT)


def test_digests_alike_in_their_first_half_are_told_apart() -> None:
    """No hash will ever do this in a test, so the digests are made by hand."""
    pairs = np.array([[7, 3], [7, 1], [9, 5], [7, 2], [7, 3]], np.uint64)
    digests = SortedDigests(pairs.tobytes())
    assert digests.low.tolist() == [1, 2, 3, 3, 5]
    assert digests.order.tolist() == [1, 3, 0, 4, 2], "equal ones stay in the order they came in"
    assert digests.starts().tolist() == [0, 1, 2, 4]
    keys = KeySet(pairs[[1, 3]].tobytes())
    asked = SortedDigests(np.array([[7, 2], [7, 9], [6, 1], [99, 0]], np.uint64).tobytes())
    assert dict(zip(asked.low.tolist(), keys.places(asked).tolist(), strict=True)) == {
        2: 1,
        9: -1,
        1: -1,
        0: -1,
    }


def test_places_agree_with_find() -> None:
    keys, asked = KeySet.of(KEYS[::3]), SortedDigests(b"".join(map(digest, KEYS)))
    places = keys.places(asked)
    for place, number in zip(places.tolist(), asked.order.tolist(), strict=True):
        assert place == (-1 if (found := keys.find(KEYS[number])) is None else found)


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return OutputStore(str(tmp_path / "out"))


def failed(store: OutputStore, *reasons: Reason, final: bool = False, number: int = 0) -> None:
    """One part for each attempt; the last one final if asked."""
    first = store.failures_of(FINGERPRINT).history(make_ref(number).key).attempts
    for count, reason in enumerate(reasons, start=1):
        is_final = final and count == len(reasons)
        store.write_failures([make_failure(number, reason=reason, attempt=first + count, is_final=is_final)])


def history(store: OutputStore, number: int = 0) -> History:
    return store.failures_of(FINGERPRINT).history(make_ref(number).key)


def test_a_video_never_tried_has_no_history(store: OutputStore) -> None:
    assert history(store) == History()
    failed(store, Reason.READ_ERROR, number=1)
    assert history(store) == History()
    assert store.failures_of(FINGERPRINT).final(make_ref(0).key) is None


def test_crashes_and_stuck_generations_are_strikes_the_rest_failures(store: OutputStore) -> None:
    failed(store, Reason.READ_ERROR, Reason.CRASHED_WORKER, Reason.GENERATION_TIMEOUT, Reason.READ_ERROR)
    assert history(store) == History(attempts=4, failures=2, strikes=2)


def test_a_final_failure_starts_the_count_anew_but_not_the_attempts(store: OutputStore) -> None:
    failed(store, Reason.READ_ERROR, Reason.CRASHED_WORKER, Reason.READ_ERROR, final=True)
    assert history(store) == History(attempts=3)
    failed(store, Reason.CRASHED_WORKER)
    assert history(store) == History(attempts=4, strikes=1)
    assert store.failures_of(FINGERPRINT).final(make_ref(0).key) is Reason.READ_ERROR


def test_attempts_whose_rows_got_lost_count(store: OutputStore) -> None:
    """A run was killed before the failure of attempt 1 was committed; the next one is attempt 3."""
    store.write_failures([make_failure(attempt=2, is_final=False)])
    assert history(store).attempts == 2


def test_failures_of_another_table_or_job_do_not_count(store: OutputStore) -> None:
    store.write_failures(
        [
            make_failure(0, details={"table": "captions"}),
            make_failure(1, fingerprint="another"),
            make_failure(2, details={"table": "videos"}),
            make_failure(3, details={}),
        ]
    )
    found = store.failures_of(FINGERPRINT)
    assert [found.final(make_ref(number).key) for number in range(4)] == [None, None, *[Reason.CORRUPT] * 2]
    assert found.by_reason() == {Reason.CORRUPT: 2}
    assert OutputStore(store.storage.uri, "captions").failures_of(FINGERPRINT).num_final == 2


def test_another_version_of_a_failed_video_is_another_video(store: OutputStore) -> None:
    store.write_failures([make_failure(0)])
    assert store.failures_of(FINGERPRINT).final(("video-0", "new")) is None


def test_a_reason_from_a_newer_version_is_named(store: OutputStore) -> None:
    store.write_failures([make_failure()])
    (entry,) = store.parts("failures")
    path = Path(Storage(store.storage.uri).path(f"failures/{entry.name}"))
    table = pa.parquet.read_table(path)
    column = pa.array(["eaten_by_a_dog"])
    pa.parquet.write_table(table.set_column(table.schema.get_field_index("reason"), "reason", column), path)
    with pytest.raises(UserError, match="the reason eaten_by_a_dog"):
        store.failures_of(FINGERPRINT)


def test_many_failures_agree_with_counting_one_by_one(store: OutputStore) -> None:
    """Against the plain way: a mapping, attempt after attempt."""
    random.seed(7)
    expected: dict[int, History] = {}
    last: dict[int, Reason] = {}
    for _ in range(20):
        batch = []
        for _ in range(50):
            number, reason = random.randrange(60), random.choice(list(Reason))
            before = expected.get(number, History())
            is_final = random.random() < 0.2
            batch.append(make_failure(number, reason=reason, attempt=before.attempts + 1, is_final=is_final))
            expected[number] = before.after(reason, is_final)
            if is_final:
                last[number] = reason
        store.write_failures(batch)
    indexed = [number for number in range(60) if number % 5 == 0]
    store.write_rows([make_row(number) for number in indexed])
    found = store.failures_of(FINGERPRINT)
    for number in range(60):
        key = make_ref(number).key
        assert found.history(key) == expected.get(number, History())
        assert found.final(key) == (None if number in indexed else last.get(number))


def test_no_failures_at_all() -> None:
    found = FailedSoFar([])
    found.settle(KeySet.of(KEYS))
    assert (found.num_final, found.by_reason(), found.final(KEYS[0])) == (0, {}, None)
