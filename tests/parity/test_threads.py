"""Threads share one model, each with its own settings or none; each gets what it gets when it is alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from flashvid.generation.wrapper import flashvid
from flashvid.models.registry import adapter_for
from tests.parity.test_pruned_batches import ROWS, padded, visual_inputs
from tests.parity.test_unwrapped import clip, inputs_of
from tests.tiny_model import hooks_of, prompt_of, tiny_model

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
REPEATS = 8


@pytest.fixture(autouse=True)
def eager_switching() -> Iterator[None]:
    """The interpreter changes threads after each few instructions, one kernel uses one core."""
    interval, cores = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-6)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(cores)
    sys.setswitchinterval(interval)


def together(calls: list[Callable[[], Any]], repeats: int = REPEATS) -> list[list[Any]]:
    """Results of each call, made ``repeats`` times in a thread of its own; all threads start as one."""
    barrier = threading.Barrier(len(calls))
    results: list[list[Any]] = [[] for _ in calls]

    def run(index: int) -> None:
        barrier.wait()
        for _ in range(repeats):
            try:
                results[index].append(calls[index]())
            except Exception as error:
                results[index].append(error)
                return

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        for value in result:
            if isinstance(value, Exception):
                raise value
    return results


def test_three_threads_on_one_model() -> None:
    """Two configurations with prompts of equal shape, a padded batch with beams, and the bare model."""
    model = tiny_model()
    ids = torch.tensor([prompt_of(3, ("video", 48), 4)])
    batch, mask = padded(*ROWS)
    text = torch.tensor([prompt_of(9)])
    strong = flashvid(model, 0.25, pruning_layer=2, llm_retention_ratio=0.1)
    weak = flashvid(model, 0.9, pruning_layer=3, llm_retention_ratio=0.7, alpha=0.4)
    calls: list[Callable[[], Tensor]] = [
        lambda: strong.generate(ids, **inputs_of(1.0), **GREEDY),
        lambda: weak.generate(ids, **inputs_of(1.0), **GREEDY),
        lambda: weak.generate(batch, mask, **visual_inputs(), **GREEDY, num_beams=2),
        lambda: model.generate(text, **GREEDY),
    ]
    alone = [call() for call in calls]
    assert len({tuple(result[0, -4:].tolist()) for result in alone}) > 2  # the settings matter
    for results, wanted in zip(together(calls), alone, strict=True):
        assert len(results) == REPEATS
        assert all(torch.equal(result, wanted) for result in results)
    assert hooks_of(model) == 0


def test_saliency_of_two_videos_at_once() -> None:
    model = tiny_model()
    adapter = adapter_for(model)
    pixels = [clip(8, seed)[0] for seed in (0, 2)]
    grid = (4, 8, 6)
    calls: list[Callable[[], Any]] = [
        lambda: adapter.encode_video(pixels[0], grid, units_per_chunk=1).saliency,
        lambda: adapter.encode_video(pixels[1], grid, units_per_chunk=2).saliency,
        lambda: adapter.encode_video(pixels[1], grid, with_saliency=False).features,
    ]
    alone = [call() for call in calls]
    for results, wanted in zip(together(calls), alone, strict=True):
        assert all(torch.equal(result, wanted) for result in results)
    assert hooks_of(model) == 0


def test_hooks_of_a_sleeping_thread_are_not_run() -> None:
    """The bare model runs whole while another thread is inside its pruned ``generate``."""
    model = tiny_model()
    ids = torch.tensor([prompt_of(3, ("video", 48), 4)])
    text = torch.tensor([prompt_of(9)])
    wanted = model.generate(text, **GREEDY)
    during: list[Any] = []

    class Streamer:
        """Runs the bare model in a second thread, in the middle of the first one's call."""

        def put(self, value: Tensor) -> None:
            hooks = hooks_of(model)
            thread = threading.Thread(target=lambda: during.append((hooks, model.generate(text, **GREEDY))))
            thread.start()
            thread.join()

        def end(self) -> None:
            pass

    flashvid(model, 0.25).generate(ids, **inputs_of(1.0), **GREEDY, streamer=Streamer())
    assert len(during) == 1 + 4
    for hooks, output in during:
        assert hooks == 3
        assert torch.equal(output, wanted)
