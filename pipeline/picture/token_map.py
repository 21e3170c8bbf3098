"""Where every visual token of one video went: the plan of a compression as arrays over units and cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashvid.compression import CompressionPlan

__all__ = ["TokenMap"]


@dataclass(frozen=True)
class TokenMap:
    """Arrays (T, R, C): T temporal units of R x C cells, one visual token each, in raster order.

    segment_lengths: in units, summing to T. chosen: bool, selected by ADTS, kept as they are. group: int64,
    number of the kept token that stands for each token, -1 where none does. kept: (K,) int64, global index of
    each kept token, increasing. sizes: (K,) int64, tokens each stands for. root: int64, global index of the
    root of each token's tree, itself for roots and chosen tokens.

    Raises ValueError where the numbers do not add up to T*R*C tokens.
    """

    segment_lengths: tuple[int, ...]
    chosen: NDArray[np.bool_]
    group: NDArray[np.int64]
    kept: NDArray[np.int64]
    sizes: NDArray[np.int64]
    root: NDArray[np.int64]

    @classmethod
    def from_plan(cls, plan: CompressionPlan, rows: int, columns: int) -> TokenMap:
        """The map of a plan for (T, rows*columns) tokens. Raises ValueError where the cells do not fit."""
        num_units, num_tokens = plan.shape
        if rows * columns != num_tokens:
            raise ValueError(f"{rows} x {columns} cells are not the {num_tokens} tokens of a unit")
        cells = (num_units, rows, columns)
        return cls(
            segment_lengths=tuple(plan.segment_lengths),
            chosen=_array(plan.selected).astype(np.bool_).reshape(cells),
            group=_array(plan.group).reshape(cells),
            kept=_array(plan.kept),
            sizes=_array(plan.group_sizes),
            root=_array(plan.root).reshape(cells),
        )

    def __post_init__(self) -> None:
        if not self.chosen.shape == self.group.shape == self.root.shape or self.chosen.ndim != 3:
            raise ValueError(
                f"chosen {self.chosen.shape}, group {self.group.shape} and root {self.root.shape} "
                "must be one shape (T, R, C)"
            )
        if sum(self.segment_lengths) != self.num_units:
            raise ValueError(
                f"segments of {self.segment_lengths} units are not the {self.num_units} of the video"
            )
        counted = np.bincount(self.group[self.group >= 0], minlength=len(self.kept))
        if not np.array_equal(counted, self.sizes):
            raise ValueError("sizes must be the number of tokens in each group; they are not: a broken plan")

    @property
    def num_units(self) -> int:
        return len(self.chosen)

    @property
    def num_tokens(self) -> int:
        """Tokens before compression."""
        return self.chosen.size

    @property
    def num_kept(self) -> int:
        """Tokens after compression: chosen and merged ones."""
        return len(self.kept)

    @property
    def num_chosen(self) -> int:
        return int(self.chosen.sum())

    @property
    def num_merged(self) -> int:
        """Kept tokens that are the mean of a group."""
        return self.num_kept - self.num_chosen

    @property
    def num_dropped(self) -> int:
        """Tokens that nothing stands for; only where the budget has no places for merged tokens."""
        return int((self.group < 0).sum())

    @property
    def num_absorbed(self) -> int:
        """Tokens that are not kept themselves but are part of a merged one."""
        return self.num_tokens - self.num_kept - self.num_dropped

    @property
    def num_trees(self) -> int:
        return int(self.is_root.sum())

    @cached_property
    def is_place(self) -> NDArray[np.bool_]:
        """(T, R, C): cells at which a merged token is kept."""
        place = np.zeros(self.num_tokens, np.bool_)
        place[self.kept] = True
        return np.asarray(place.reshape(self.chosen.shape) & ~self.chosen)

    @cached_property
    def is_root(self) -> NDArray[np.bool_]:
        """(T, R, C): cells of the roots of merge trees; some are places, the others joined one of them."""
        own = np.arange(self.num_tokens).reshape(self.chosen.shape)
        return np.asarray((self.root == own) & ~self.chosen & (self.group >= 0))

    @cached_property
    def segment_of_unit(self) -> tuple[int, ...]:
        return tuple(np.repeat(np.arange(len(self.segment_lengths)), self.segment_lengths).tolist())

    def colors(self, num_colors: int) -> NDArray[np.int64]:
        """(K,): a colour number in [0, num_colors) for each merged token, -1 for chosen ones.

        The largest groups come first. Each takes the colour that its neighbours, in place and in time, use
        least; of those the one its segment uses least, then the lowest.
        """
        touching = self._touching()
        segment = np.asarray(self.segment_of_unit)[self.kept // self.chosen[0].size]
        used = np.zeros((len(self.segment_lengths), num_colors), np.int64)
        color = np.full(self.num_kept, -1)
        by_size = np.argsort(-self.sizes, kind="stable")
        for group in by_size[~self.chosen.ravel()[self.kept[by_size]]].tolist():
            near = color[touching[group]]
            cost = used[segment[group]] + self.num_tokens * np.bincount(near[near >= 0], minlength=num_colors)
            color[group] = int(cost.argmin())
            used[segment[group], color[group]] += 1
        return color

    def _touching(self) -> list[list[int]]:
        """For each group the others with a cell beside, above or one unit away from one of its own."""
        found: set[tuple[int, int]] = set()
        for axis in range(3):
            cut = np.moveaxis(self.group, axis, 0)
            pairs = np.stack([cut[:-1].ravel(), cut[1:].ravel()], axis=1)
            pairs = np.unique(pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs >= 0).all(axis=1)], axis=0)
            found.update(map(tuple, pairs.tolist()))
        near: list[list[int]] = [[] for _ in self.kept]
        for first, second in sorted(found | {(second, first) for first, second in found}):
            near[first].append(second)
        return near


def _array(tensor: Any) -> NDArray[np.int64]:
    """A tensor on any device."""
    return np.asarray(tensor.cpu().numpy(), np.int64)
