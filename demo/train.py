"""`python -m demo.train`: the checkpoint from nothing, in a stated number of minutes on two CPU cores."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from demo.stage_language import LanguageTrainer, initialise_language
from demo.stage_vision import train_vision
from demo.tiny import build_model, build_tokenizer, export, save_weights
from demo.tower import initialise_vision

__all__ = ["train"]

# (minutes, peak learning rate): each cycle of the vision stage warms up again and decays to nothing
_VISION_CYCLES = ((12.5, 1.2e-3), (8.0, 1.0e-3), (6.0, 1.0e-3))
# (minutes, from share, to share of the course): each cycle of the language stage goes back and decays again
_LANGUAGE_CYCLES = ((24.5, 0.0, 0.8), (17.0, 0.55, 1.0), (15.0, 0.5, 1.0))
_MINUTES = 85.0  # the cycles, and two minutes for making test videos and for start and end
# Without these, glibc returns every large tensor to the kernel and a third of the time goes into page faults.
_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=17179869184"
)


def train(out: Path, minutes: float, seed: int) -> None:
    """Train both stages within `minutes` and keep `out` a loadable checkpoint from the first minute on."""
    torch.manual_seed(seed)
    model = build_model()
    initialise_vision(model.model.visual)
    initialise_language(model)
    export(model, out)
    pace, heads = minutes / _MINUTES, None
    for number, (part, peak) in enumerate(_VISION_CYCLES):
        heads = train_vision(model.model.visual, part * pace, seed + number, heads=heads, peak=peak)
        save_weights(model, out)
    model.model.visual.requires_grad_(False)
    trainer = LanguageTrainer(model, build_tokenizer(), seed)
    for part, first, last in _LANGUAGE_CYCLES:
        trainer.train(part * pace, lambda: save_weights(model, out), (first, last))


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo/model"))
    parser.add_argument("--minutes", type=float, default=_MINUTES, help="wall time of all training together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = _TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", "demo.train", *sys.argv[1:]])
    torch.set_num_threads(arguments.threads)
    train(arguments.out, arguments.minutes, arguments.seed)


if __name__ == "__main__":
    _main()
