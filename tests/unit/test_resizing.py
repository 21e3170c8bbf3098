"""One rule for the size at which a frame is seen, for those who have torch and those who must not load it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference

from flashvid.frames import VisionSettings
from flashvid.resizing import smart_resize

LIMITS = {"min_pixels": 128 * 28 * 28, "max_pixels": 768 * 28 * 28}


@settings(deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000))
def test_size_is_that_of_the_models_own_processor(height: int, width: int) -> None:
    try:
        expected = reference(height, width, factor=28, **LIMITS)
    except ValueError:
        with pytest.raises(ValueError, match=r"200:1 at most; crop or pad"):
            smart_resize(height, width, multiple=28, **LIMITS)
        return
    got = smart_resize(height, width, multiple=28, **LIMITS)
    # Where the reference rounds a side down to nothing, one cell is the least a model can see.
    assert got == expected or 0 in expected
    assert VisionSettings(**LIMITS).frame_size(height, width) == got


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0), (1, 201), (201, 1)])
def test_impossible_frames_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{width}x{height} pixels cannot be resized"):
        smart_resize(height, width, multiple=28, **LIMITS)


@pytest.mark.parametrize(
    ("modules", "loads_torch"),
    [
        ("pipeline.decoding.child_main, pipeline.decoding.sampling, pipeline.decoding.file_decoder", False),
        ("flashvid.resizing, flashvid.budget", False),
        ("flashvid.frames", True),  # positive control
    ],
)
def test_decoding_and_planning_do_without_torch(modules: str, loads_torch: bool) -> None:
    code = f"import sys, {modules}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(loads_torch), "False"]
