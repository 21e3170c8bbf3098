"""`style="transformers"` is what the library computes; `"trained"` is not."""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version
from torch import Tensor

from flashvid.inside.calls import library_version
from flashvid.inside.positions import PositionStyle, find_spans, mrope_positions
from flashvid.inside.prompt import token_types
from tests.tiny_model import IMAGE, VIDEO, prompt_of, tiny_model

PROMPTS = {
    "one video": ([4, ("video", 64), 6], [], [((4, 8, 8), 1.0)]),
    "half seconds": ([4, ("video", 480), 6], [], [((20, 8, 12), 0.5)]),
    "fractions": ([3, ("video", 240), 5], [], [((30, 4, 8), 0.37)]),
    "image, video": ([3, ("image", 16), 2, ("video", 192), 5], [(1, 8, 8)], [((12, 8, 8), 2.0)]),
    "two videos": ([3, ("video", 40), 2, ("video", 48), 5], [], [((10, 4, 4), 2.0), ((6, 8, 4), 0.5)]),
}


def both(name: str, style: PositionStyle) -> tuple[Tensor, Tensor]:
    """Ours in this style, the library's."""
    parts, images, videos = PROMPTS[name]
    ids = torch.tensor([prompt_of(*parts)])
    types = token_types(ids, image_token_id=IMAGE, video_token_id=VIDEO)
    spans = find_spans(types[0].tolist(), iter(images), iter(videos), merge_size=2)
    ours = mrope_positions(ids.shape[1], spans, tokens_per_second=2, style=style)
    theirs, _ = tiny_model().model.get_rope_index(
        ids,
        types,
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor([grid for grid, _ in videos]),
        second_per_grid_ts=torch.tensor([seconds for _, seconds in videos]),
    )
    return ours, theirs[:, 0]


@pytest.mark.parametrize("name", PROMPTS)
def test_transformers_style_equals_the_library(name: str) -> None:
    seconds = [seconds for _, seconds in PROMPTS[name][2]]
    if library_version() < Version("5.18") and any(one % 1 for one in seconds):
        pytest.skip("this version takes whole seconds only")
    ours, theirs = both(name, "transformers")
    assert torch.equal(ours, theirs)


def test_trained_style_differs_where_the_library_is_wrong() -> None:
    ours, theirs = both("half seconds", "trained")
    if library_version() < Version("5.18"):
        assert not torch.equal(ours, theirs)
        return
    assert torch.equal(ours[:, :485], theirs[:, :485])
    assert ours[0, -1] > theirs[0, -1]
