"""Out of memory: what is tried next, what is said about it, and when it ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Reason, Stage, VideoError
from pipeline.indexing.out_of_memory import Step, Steps, guarded, halved, spread


def fits(most: Step, tried: list[Step]) -> Callable[[Step], str]:
    """A call that needs memory for no more than so many prompts and frames."""

    def call(step: Step) -> str:
        tried.append(step)
        if step.num_prompts > most.num_prompts or step.num_frames > most.num_frames:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "fine"

    return call


@contextmanager
def quickly() -> Iterator[None]:
    """Without collecting garbage, which takes a while each time; that it is done is a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.indexing.out_of_memory.free_memory", lambda: None)
        yield


@pytest.mark.parametrize(
    ("most", "note"),
    [
        (Step(99, 999), None),
        (Step(5, 999), "out of memory: 4 prompts at once instead of 16"),
        (Step(1, 999), "out of memory: 1 prompt at once instead of 16"),
        (Step(1, 80), "out of memory: 1 prompt at once instead of 16, 80 of 160 frames"),
        (Step(99, 159), "out of memory: 1 prompt at once instead of 16, 80 of 160 frames"),
        (Step(1, 4), "out of memory: 1 prompt at once instead of 16, 4 of 160 frames"),
    ],
)
def test_fewer_prompts_first_then_fewer_frames_and_the_row_says_so(most: Step, note: str | None) -> None:
    with quickly():
        assert Steps(40, baseline_frames=16).run(160, fits(most, [])) == ("fine", note)


def test_a_single_prompt_leaves_only_frames_to_reduce() -> None:
    with quickly():
        assert Steps(1, 16).run(160, fits(Step(1, 80), [])) == ("fine", "out of memory: 80 of 160 frames")


def test_the_steps_end_and_then_it_is_the_videos_failure() -> None:
    tried: list[Step] = []
    said = r"OutOfMemoryError: .* least that is tried: 1 prompt"
    with quickly(), pytest.raises(VideoError, match=said) as caught:
        Steps(6, 16).run(40, fits(Step(0, 0), tried))
    assert (caught.value.stage, caught.value.reason) == (Stage.GENERATION, Reason.OUT_OF_MEMORY)
    assert caught.value.reason.is_transient
    assert tried == [Step(6, 40), Step(3, 40), Step(1, 40), Step(1, 20), Step(1, 10), Step(1, 5), Step(1, 4)]


@given(st.integers(1, 200), st.integers(1, 5000), st.integers(1, 500))
def test_every_step_asks_for_less_and_there_are_few(prompts: int, frames: int, baseline: int) -> None:
    tried: list[Step] = []
    with quickly(), pytest.raises(VideoError):
        Steps(prompts, baseline).run(frames, fits(Step(0, 0), tried))
    sizes = [step.num_prompts * step.num_frames for step in tried]
    assert sizes == sorted(set(sizes), reverse=True)
    assert tried[0] == Step(min(prompts, 16), frames)
    assert tried[-1].num_prompts == 1
    assert tried[-1].num_frames == min(frames, max(2, -(-baseline // 4)))
    assert len(tried) <= 5 + 13


def test_the_next_window_begins_with_the_prompts_that_fitted_but_all_frames() -> None:
    steps, tried = Steps(8, 16), []
    with quickly():
        steps.run(40, fits(Step(2, 20), tried))
    tried.clear()
    _, note = steps.run(40, fits(Step(2, 40), tried))
    assert tried == [Step(1, 40)]
    assert note == "out of memory: 1 prompt at once instead of 8", "the row of the window says it too"


def test_the_engine_chooses_where_nothing_is_stepped_down() -> None:
    steps = Steps(40, 16)
    assert [steps.limit(Step(number, 10)) for number in (16, 8)] == [None, 8]


def test_what_a_failed_call_held_is_free_before_the_next() -> None:
    """Tensors hang on the traceback: caught too late, the second try would have less than the first."""
    held: list[weakref.ref[torch.Tensor]] = []

    def call(step: Step) -> bool:
        if held:
            return held[0]() is None
        tensor = torch.zeros(1000)
        cycle = [tensor]
        cycle.append(cycle)  # type: ignore[arg-type]
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("2 GiB")

    gc.disable()
    try:
        assert Steps(4, 16).run(8, call)[0] is True
    finally:
        gc.enable()


def test_only_memory_is_a_reason_to_step_down() -> None:
    tried: list[Step] = []

    def call(step: Step) -> None:
        tried.append(step)
        raise RuntimeError("shape")

    with pytest.raises(RuntimeError, match="shape"):
        Steps(8, 16).run(40, call)
    assert len(tried) == 1


@given(st.integers(1, 400), st.data())
def test_chosen_frames_are_spread_evenly(num_frames: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, num_frames))
    chosen = spread(num_frames, wanted)
    gaps = np.diff(np.concatenate(([-1 - chosen[0]], chosen, [2 * num_frames - 1 - chosen[-1]])))
    assert len(chosen) == wanted
    assert np.all(np.diff(chosen) > 0)
    assert 0 <= chosen[0] <= chosen[-1] < num_frames
    assert gaps.max() <= num_frames / wanted + 2
    if wanted == num_frames:
        assert chosen.tolist() == list(range(num_frames))


def failing(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("2 GiB"), Reason.OUT_OF_MEMORY),
        (MemoryError("host"), Reason.OUT_OF_MEMORY),
        (ValueError("odd"), Reason.GENERATION_FAILED),
    ],
)
def test_an_engines_error_is_the_videos(error: Exception, reason: Reason) -> None:
    with pytest.raises(VideoError, match=f"{type(error).__name__}: {error}") as caught:
        guarded(failing(error))
    assert caught.value.reason is reason


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="torch before 2.8 has no such class")
def test_a_broken_device_is_nobodys() -> None:
    with pytest.raises(torch.AcceleratorError):
        guarded(failing(torch.AcceleratorError("device-side assert", 710)))


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="torch before 2.8 has no such class")
def test_an_allocation_that_the_device_refused_is_out_of_memory() -> None:
    """What is not from torch's allocator, such as a workspace of cuBLAS, is refused by the device itself."""
    refused = torch.AcceleratorError("CUDA error: out of memory")
    refused.error_code = 2  # as torch sets it

    def call(step: Step) -> str:
        if step.num_frames > 10:
            raise refused
        return "fine"

    with quickly():
        assert Steps(1, 16).run(20, call) == ("fine", "out of memory: 10 of 20 frames")
        with pytest.raises(VideoError) as caught:
            guarded(failing(refused))
    assert caught.value.reason is Reason.OUT_OF_MEMORY


def test_a_text_is_halved_until_it_fits_or_is_at_its_least() -> None:
    tried: list[int] = []

    def needs_at_most(most: int) -> Callable[[int], str]:
        def call(size: int) -> str:
            tried.append(size)
            if size > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return "fine"

        return call

    with quickly():
        assert halved(8192, 256, needs_at_most(9000)) == ("fine", 8192)
        assert halved(8192, 256, needs_at_most(2500)) == ("fine", 2048)
        tried.clear()
        with pytest.raises(VideoError, match="CUDA out of memory, at the least that is tried: 300") as caught:
            halved(1200, 256, needs_at_most(0))
        assert caught.value.reason is Reason.OUT_OF_MEMORY
    assert tried == [1200, 600, 300]
    with pytest.raises(VideoError, match="out of order"):
        halved(1200, 256, failing_with_size(VideoError(Stage.GENERATION, Reason.CORRUPT, "out of order")))


def failing_with_size(error: BaseException) -> Callable[[int], None]:
    def work(size: int) -> None:
        raise error

    return work


def test_without_torch_memory_errors_are_known_all_the_same() -> None:
    code = (
        "import sys; from pipeline.indexing.out_of_memory import Steps\n"
        "def call(step):\n"
        "    if step.num_frames > 20: raise MemoryError('host')\n"
        "    return step.num_frames\n"
        "print(Steps(1, 16).run(40, call), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(20, 'out of memory: 20 of 40 frames') False"
