"""Reads the golden files: inputs, settings and per-stage results of the reference code on made-up clips."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from flashvid import FlashVidConfig

__all__ = ["FILES", "Case", "load"]

FILES = sorted(Path(__file__).parent.glob("*.safetensors"))


@dataclass(frozen=True)
class Case:
    config: FlashVidConfig
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def load(path: Path) -> Case:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        settings = json.loads(file.metadata()["config"])
    names = {field.name for field in dataclasses.fields(FlashVidConfig)}
    known = {name: value for name, value in settings.items() if name in names}
    return Case(FlashVidConfig(**known, tree_mean="reference", budget="reference"), tensors)
