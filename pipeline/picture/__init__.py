"""What became of a video's tokens, to look at?

In: the frames of one video and the plan of its compression. Out: a picture, PNG or PDF. Start with
showing.py; figure.py says what stands where, rendering.py draws it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from pipeline.picture.drawing import check_target, save_image
    from pipeline.picture.rendering import draw_figure
    from pipeline.picture.showing import check_shown, figure_of
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "drawing": ["check_target", "save_image"],
            "rendering": ["draw_figure"],
            "showing": ["check_shown", "figure_of"],
        },
    )

__all__ = ["check_shown", "check_target", "draw_figure", "figure_of", "save_image"]
