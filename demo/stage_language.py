"""Second stage: the language model learns to describe encoded videos and to answer; vision is frozen."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from demo.packing import Batch, Packer
from demo.stage_vision import learning_rate
from demo.tower import Tower
from demo.truth import TIME_TOLERANCE_SECONDS
from demo.views import Clip, View, encode_clip, new_clips, training_view, whole_view
from demo.world import random_scene
from flashvid.config import FlashVidConfig

__all__ = ["LanguageTrainer", "initialise_language"]

_TIMED_LAYER = 3  # after this many layers, visual tokens are asked for their own second
_TEST_SEED = 2**41
_FIRST_CLIPS = 60
_PEAK = 1.5e-3  # learning rate
_ENCODE_SHARE = 0.25  # of the wall time goes into encoding new videos


def initialise_language(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Start values for this width: fan-in scaling, smaller residual outputs, embeddings of size 0.5."""
    text = model.model.language_model
    depth = len(text.layers)
    with torch.no_grad():
        for name, weight in text.layers.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                weight.normal_(0, 1 / math.sqrt(weight.shape[1] * (2 * depth if residual else 1)))
            elif name.endswith("bias"):
                weight.zero_()
        text.embed_tokens.weight.normal_(0, 0.5)
        model.lm_head.weight.normal_(0, 1 / math.sqrt(model.lm_head.weight.shape[1]))


class LanguageTrainer:
    """Holds the bank of encoded clips and trains for a time budget."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, seed: int
    ) -> None:
        self.model, self.text = model, model.model.language_model
        self.packer = Packer(tokenizer)
        self.tower = Tower(model.model.visual)
        self.rng = np.random.default_rng([seed, 29])
        self.long: list[Clip] = []
        self.short: list[Clip] = []
        self.encode_seconds = 0.0
        width = self.text.config.hidden_size
        self.clock = nn.Linear(width, len(self.packer.numbers))  # training only: the second of a visual token
        self._scale_features()
        self.test_views = self._test_views(40)

    @torch.no_grad()
    def _scale_features(self, wanted: float = 0.7) -> None:
        """Bring visual tokens to the size of word embeddings; directions stay."""
        clip = encode_clip(self.tower, random_scene(1, 30.0), 16, None)
        factor = wanted / clip.features.float().std()
        last = self.model.model.visual.merger.mlp[2]
        last.weight.mul_(factor)
        last.bias.mul_(factor)

    def _test_views(self, count: int) -> dict[str, list[View]]:
        """Held-out videos as the product sees them: 160 frames at a tenth, and 16 frames uncompressed."""
        views: dict[str, list[View]] = {"160@0.1": [], "16": []}
        for index in range(count):
            scene = random_scene(_TEST_SEED + index, 24.0 + 56 * index / count)
            config = FlashVidConfig(retention_ratio=0.1, expansion=1.0, max_visual_tokens=288)
            views["160@0.1"].append(whole_view(encode_clip(self.tower, scene, 80, config)))
            views["16"].append(whole_view(encode_clip(self.tower, scene, 8, None)))
        return views

    def add_clips(self) -> None:
        """Encode one more scene into the bank."""
        start = time.monotonic()
        long, short = new_clips(self.tower, self.rng)
        self.long.append(long)
        self.short.append(short)
        self.encode_seconds += time.monotonic() - start

    def draw_batch(self, share: float) -> Batch:
        """Views of one size class, from short stretches at the start to whole long videos."""
        rng, kind = self.rng, self.rng.random()
        ease = min(1.0, share / 0.3)
        if kind > ease * 0.85 or kind < 0.06:
            most = int(rng.integers(24, 64 + int(160 * ease)))
            return self._pack(self.long, 24 if most < 100 else 14, (3, 4 + int(30 * ease)), most, 6)
        if kind < 0.2:
            return self._pack(self.short, 10, (8, 24), 300, 7)
        return self._pack(self.long, 10, (80, 80), 340, 7)

    def _pack(self, bank: list[Clip], count: int, units: tuple[int, int], most: int, questions: int) -> Batch:
        views = []
        for _ in range(count):
            clip = bank[int(self.rng.integers(len(bank)))]
            wanted = int(self.rng.integers(units[0], units[1] + 1))
            views.append(training_view(clip, self.rng, min(wanted, len(clip.features)), most))
        return self.packer.batch(views, self.rng, questions)

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states (B, S, W) after the timed layer and after the last, through the stock layers."""
        embeds = self.text.embed_tokens(batch.ids)
        embeds = embeds.masked_scatter(batch.visual[..., None], batch.tokens)
        rotary = self.text.rotary_emb(embeds, batch.positions)
        mask = torch.zeros(batch.mask.shape).masked_fill_(~batch.mask, float("-inf"))
        x = timed = embeds
        for index, layer in enumerate(self.text.layers, 1):
            x = layer(x, attention_mask=mask, position_embeddings=rotary)
            timed = x if index == _TIMED_LAYER else timed
        return timed, self.text.norm(x)

    def loss(self, batch: Batch, share: float) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the answers (numbers softened), and of the clock on a sample of visual tokens."""
        timed, final = self.hidden(batch)
        soft = self._soft_numbers(3.0 * (1 - share) ** 2 + 0.7)
        used = batch.targets >= 0
        logits = self.model.lm_head(final[used]).float()
        target = soft[batch.targets[used]]
        weight = torch.where(target.max(-1).values < 0.999, 2.0, 1.0)
        answers = -((target * logits.log_softmax(-1)).sum(-1) * weight).sum() / weight.sum()
        sample = (batch.seconds >= 0) & (torch.rand(batch.seconds.shape) < 0.3)
        times = soft[self.packer.numbers][:, self.packer.numbers][batch.seconds[sample].clamp(max=99)]
        clock = -(times * self.clock(timed[sample]).log_softmax(-1)).sum(-1).mean()
        return answers, clock

    def _soft_numbers(self, sigma: float) -> Tensor:
        """(V, V) target distribution per token: itself, or for numbers a bell over neighbouring seconds."""
        table = torch.eye(self.text.config.vocab_size)
        numbers = torch.tensor(self.packer.numbers)
        gap = (torch.arange(len(numbers))[:, None] - torch.arange(len(numbers))[None]).float()
        bell = torch.exp(-0.5 * (gap / sigma) ** 2)
        table[numbers[:, None], numbers[None]] = bell / bell.sum(1, keepdim=True)
        return table

    @torch.no_grad()
    def measure(self, views: list[View]) -> dict[str, float]:
        """Share of answers that are exactly right (times: within the tolerance), per kind of question."""
        counts: dict[str, list[float]] = defaultdict(list)
        number_of = {token: value for value, token in enumerate(self.packer.numbers)}
        for chunk in range(0, len(views), 10):
            batch = self.packer.batch(views[chunk : chunk + 10], np.random.default_rng(chunk), 12)
            said = self.model.lm_head(self.hidden(batch)[1]).argmax(-1)
            for row in range(len(batch.ids)):
                for branch in range(1, int(batch.branches[row].max()) + 1):
                    used = (batch.branches[row] == branch) & (batch.targets[row] >= 0)
                    kind = self.packer.kinds[int(batch.kinds[row][used][0])]
                    pairs = list(
                        zip(said[row][used].tolist(), batch.targets[row][used].tolist(), strict=True)
                    )
                    gaps = [abs(number_of.get(a, 999) - number_of[b]) for a, b in pairs if b in number_of]
                    counts["time"] += [float(gap <= TIME_TOLERANCE_SECONDS) for gap in gaps]
                    words = [a == b for a, b in pairs if b not in number_of]
                    counts[kind].append(
                        float(all(words) and all(gap <= TIME_TOLERANCE_SECONDS for gap in gaps))
                    )
                    if kind == "caption":
                        counts["caption words"].append(float(np.mean(words)))
        return {kind: round(float(np.mean(values)), 2) for kind, values in sorted(counts.items())}

    def train(
        self, minutes: float, save: Callable[[], None], shares: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        """Train for a time budget; `save` is called every three minutes and at the end.

        shares: the part of the whole course (learning rate, curriculum) that this cycle covers.
        """
        parameters = [*self.text.parameters(), *self.model.lm_head.parameters(), *self.clock.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=_PEAK, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
        start, step, saved = time.monotonic(), 0, 0.0
        self.encode_seconds = 0.0
        losses: list[tuple[float, float]] = []
        while (elapsed := time.monotonic() - start) < minutes * 60:
            share = shares[0] + (shares[1] - shares[0]) * elapsed / (minutes * 60)
            if len(self.long) < _FIRST_CLIPS or (
                self.encode_seconds < _ENCODE_SHARE * elapsed and share < 0.95
            ):
                self.add_clips()
                continue
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(share, _PEAK)
            answers, clock = self.loss(self.draw_batch(share), share)
            optimiser.zero_grad(set_to_none=True)
            (answers + 0.5 * clock).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            losses.append((answers.item(), clock.item()))
            step += 1
            if step % 50 == 0:
                mean = np.mean(losses[-50:], 0)
                passed = f"language {elapsed / 60:5.1f} min step {step} clips {len(self.long)}"
                print(f"{passed} loss {mean[0]:.3f} clock {mean[1]:.3f}", flush=True)
            if elapsed - saved > 180:
                saved = elapsed
                self.report(save)
        self.report(save)

    def report(self, save: Callable[[], None]) -> None:
        """Save, and print the accuracies on held-out videos."""
        save()
        for name, views in self.test_views.items():
            print(f"  {name}: {self.measure(views)}", flush=True)
