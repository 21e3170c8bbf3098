"""The synthetic world: the same seed gives the same video, and the truth is what the pixels show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from demo.corpus import corpus_scenes, write_corpus
from demo.language import caption, question_pool, seen_facts, truth_of
from demo.render import Painter, render, write_video
from demo.truth import answer_is_right, parse_caption, score_caption, total
from demo.world import (
    COLOURS,
    FRAME_SIZE,
    HELD_OUT_PAIRS,
    MOTIONS,
    SHAPES,
    random_scene,
)


def test_same_seed_same_scene_and_pixels() -> None:
    assert random_scene(5, 30.0) == random_scene(5, 30.0)
    assert random_scene(5, 30.0) != random_scene(6, 30.0)
    first = render(random_scene(5, 30.0), [0.0, 7.5], noise=3.0)
    assert np.array_equal(first, render(random_scene(5, 30.0), [0.0, 7.5], noise=3.0))
    assert first.shape == (2, FRAME_SIZE, FRAME_SIZE, 3)
    assert first.dtype == np.uint8


def test_scenes_keep_the_rules_of_the_world() -> None:
    for seed in range(200):
        scene = random_scene(seed, 40.0)
        items = scene.items
        assert len({item.colour for item in items}) == len({item.shape for item in items}) == len(items)
        assert not any((item.colour, item.shape) in HELD_OUT_PAIRS for item in items)
        assert all(0 <= event.start_seconds < event.end_seconds <= 40.0 for event in scene.events)
        assert all(1.0 <= event.end_seconds - event.start_seconds <= 3.0 for event in scene.events)
        for first, second in zip(scene.events, scene.events[1:], strict=False):
            assert first.end_seconds < second.start_seconds


def test_held_out_scenes_hold_exactly_one_held_out_pair() -> None:
    for seed in range(30):
        scene = random_scene(seed, 40.0, held_out=True)
        pairs = [(item.colour, item.shape) for item in scene.items]
        assert sum(pair in HELD_OUT_PAIRS for pair in pairs) == 1


def test_every_colour_shape_and_motion_occurs() -> None:
    scenes = [random_scene(seed, 40.0) for seed in range(200)]
    items = [item for scene in scenes for item in scene.items]
    assert {item.colour for item in items} == set(COLOURS)
    assert {item.shape for item in items} == set(SHAPES)
    assert {thing.motion for scene in scenes for thing in scene.things} == set(MOTIONS)


def test_pixels_show_the_true_colours() -> None:
    for seed in range(20):
        scene = random_scene(seed, 40.0, num_events=1)
        event = scene.events[0]
        owner = np.empty((FRAME_SIZE, FRAME_SIZE), np.uint8)
        image = Painter(scene).paint(event.start_seconds + 0.01, owner).astype(int)
        for number, item in enumerate(scene.items, 1):
            mine = image[owner == number]
            close = np.abs(mine - np.asarray(COLOURS[item.colour], dtype=np.int64)).max(1) <= 14
            assert close.any(), (seed, item)


def test_event_is_seen_only_while_it_lasts() -> None:
    scene = random_scene(3, 40.0, num_events=1)
    event = scene.events[0]
    owner = np.empty((FRAME_SIZE, FRAME_SIZE), np.uint8)
    number = len(scene.things) + 1
    for seconds, visible in (
        (event.start_seconds - 0.05, False),
        (event.start_seconds + 0.05, True),
        (event.end_seconds - 0.05, True),
        (event.end_seconds + 0.05, False),
    ):
        Painter(scene).paint(seconds, owner)
        assert bool((owner == number).any()) is visible


@pytest.mark.parametrize("motion", MOTIONS)
def test_objects_move_the_way_the_truth_says(motion: str) -> None:
    seed = next(s for s in range(500) if random_scene(s, 20.0, 0).things[0].motion == motion)
    thing = random_scene(seed, 20.0, 0).things[0]
    (x0, y0), (x1, y1) = thing.centre(0.0), thing.centre(1.0)
    half = FRAME_SIZE / 2
    dx, dy = ((b - a + half) % FRAME_SIZE - half for a, b in ((x0, x1), (y0, y1)))
    wanted = {"still": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[motion]
    assert (dx, dy) == pytest.approx((wanted[0] * thing.speed, wanted[1] * thing.speed))


def test_facts_follow_the_sampled_instants() -> None:
    scene = random_scene(3, 40.0, num_events=1)
    event = scene.events[0]
    assert seen_facts(scene, [0.0, event.end_seconds]).flashes == ()
    seen = seen_facts(scene, [0.0, event.start_seconds + 0.5, event.end_seconds + 1])
    assert seen.flashes == ((event, int(event.start_seconds + 0.5)),)


def test_questions_about_what_is_not_there_are_answered_no() -> None:
    scene = random_scene(3, 40.0, num_events=2)
    facts = seen_facts(scene, np.arange(0, 40, 0.25).tolist())
    names = {f"{event.colour} {event.shape}" for event in scene.events}
    pool = question_pool(facts, np.random.default_rng(0))
    assert pool["no"]
    assert all(not any(name in question for name in names) for question, _ in pool["no"])
    assert {question for question, _ in pool["yes"]} == {f"does the {name} flash ?" for name in names}


def test_true_caption_scores_full_marks_and_false_claims_cost() -> None:
    for seed in range(40):
        truth = truth_of(random_scene(seed, 60.0))
        assert set(score_caption(truth["caption"], truth).shares().values()) == {1.0}
    truth = truth_of(random_scene(3, 60.0, num_events=1))
    event = truth["events"][0]
    late = truth["caption"].replace(f"second {int(event['second'])}", f"second {int(event['second']) + 5}")
    shares = score_caption(late, truth).shares()
    assert shares["times"] == 0.0
    assert shares["events"] == 1.0
    more = truth["caption"] + " a green star flashes at second 3 ."
    assert score_caption(more, truth).shares()["events"] == 0.5
    assert score_caption("", truth).shares()["shapes"] == 0.0


def test_scores_add_up() -> None:
    truths = [truth_of(random_scene(seed, 60.0)) for seed in range(5)]
    whole = total([score_caption(truth["caption"], truth) for truth in truths])
    assert whole.asked["motions"] == sum(len(truth["objects"]) for truth in truths)
    assert whole.asked["times"] == sum(len(truth["events"]) for truth in truths)


def test_captions_are_parsed_whatever_the_spacing() -> None:
    said = parse_caption("An orange ring stays still. a green star flashes at second 12 .")
    assert said == {
        "objects": [{"colour": "orange", "shape": "ring", "motion": "still"}],
        "events": [{"colour": "green", "shape": "star", "second": 12}],
    }


def test_answers_about_time_have_a_tolerance_and_others_none() -> None:
    assert answer_is_right("when", "At second 14.", "at second 12 .")
    assert not answer_is_right("when", "at second 16.", "at second 12 .")
    assert not answer_is_right("when any", "at second 12.", "at second 12 and 40 .")
    assert answer_is_right("when any", "nothing flashes.", "nothing flashes .")
    assert answer_is_right("colour", "red.", "red .")
    assert not answer_is_right("colour", "red ring", "red .")


def test_corpus_has_long_videos_with_events() -> None:
    scenes = corpus_scenes(14, 2026)
    long = [scene for scene in scenes if scene.duration_seconds >= 60]
    assert len(long) >= 4
    assert sum(bool(scene.events) for scene in long) >= 3
    assert all(20 <= scene.duration_seconds <= 80 and scene.seed >= 2**40 for scene in scenes)


def test_mp4_round_trip(tmp_path: Path) -> None:
    import av

    scene = random_scene(11, 4.0, num_events=1)
    path = tmp_path / "a.mp4"
    write_video(path, scene)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", FRAME_SIZE, FRAME_SIZE)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 32
    assert np.abs(frames[10].astype(float) - render(scene, [10 / 8])[0]).mean() < 8


def test_write_corpus_writes_truth_beside_videos(tmp_path: Path) -> None:
    paths = write_corpus(tmp_path, 1, seed=4)
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert [path.name for path in paths] == list(truth)
    entry = truth[paths[0].name]
    scene = corpus_scenes(1, 4)[0]
    every = np.arange(0, scene.duration_seconds, 0.01).tolist()
    assert entry["seed"] == scene.seed
    assert entry["caption"] == caption(seen_facts(scene, every))
    assert len(entry["questions"]) >= 4
