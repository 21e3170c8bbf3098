"""How much is worked on at once. Memory that is in use at any time follows from these numbers."""

from __future__ import annotations

__all__ = ["MAP_BYTES", "PATCHES_PER_CHUNK", "RESIZE_BYTES", "SALIENCY_WEIGHTS", "WIDENED_PIECES"]

# Patches that go through the vision tower at once: about 2 GB of activations in bfloat16 at 7B size.
PATCHES_PER_CHUNK = 32768

# Attention weights held at once while saliency is taken, in float32: 64 MiB.
SALIENCY_WEIGHTS = 2**24

# Maps between tokens held at once while a video is compressed. Those of 2000 frames of 256 tokens fit, so the
# number of kernel launches does not depend on the length; only very large frames take several rounds.
MAP_BYTES = 512 * 2**20

# float32 working copy of the frames that are resized together
RESIZE_BYTES = 128 * 2**20

# Pieces in which half precision features are widened to float32 where they are multiplied: as many for a long
# video as for a short one.
WIDENED_PIECES = 8
