"""Profiles: plain settings under a name, and a document that says the same."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from flashvid import FlashVidConfig, compress, flashvid, profile
from flashvid.profiles import PROFILES, profile_settings
from tests import ROOT

DOCUMENT = ROOT / "docs" / "PROFILES.md"
FIELDS = ["retention_ratio", "temporal_threshold", "min_segment_num"]


def test_the_names() -> None:
    assert list(PROFILES) == ["summary", "general", "action", "counting"]


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_sets_the_same_three_fields(name: str) -> None:
    assert list(PROFILES[name]) == FIELDS
    made = profile(name)
    assert profile_settings(name) == {field: getattr(made, field) for field in FIELDS}
    others = profile(name, **{field: getattr(FlashVidConfig(), field) for field in FIELDS})
    assert others == FlashVidConfig()


def test_general_is_the_default() -> None:
    assert profile("general") == FlashVidConfig()


def test_finer_tasks_keep_more() -> None:
    kept = {name: settings["retention_ratio"] for name, settings in PROFILES.items()}
    assert kept["summary"] < kept["general"] < 0.2 <= kept["action"] <= kept["counting"]


def test_settings_override() -> None:
    made = profile("action", adaptive=True, retention_ratio=0.3, alpha=0.5)
    assert (made.adaptive, made.retention_ratio, made.alpha) == (True, 0.3, 0.5)
    assert made.temporal_threshold == PROFILES["action"]["temporal_threshold"]


@pytest.mark.parametrize("name", ["Action", "", None, ["action"]])
def test_an_unknown_name_is_told_which_there_are(name: object) -> None:
    with pytest.raises(ValueError, match="is unknown; profiles are summary, general, action, counting"):
        profile(name)  # type: ignore[arg-type]


def test_settings_are_checked_as_everywhere() -> None:
    with pytest.raises(ValueError, match="alpha=2 must be"):
        profile("action", alpha=2)
    with pytest.raises(TypeError, match="retention"):
        profile("action", retention=0.2)


def test_profiles_cannot_be_changed_by_accident() -> None:
    with pytest.raises(TypeError):
        PROFILES["action"]["retention_ratio"] = 1  # type: ignore[index]
    profile_settings("action")["retention_ratio"] = 1
    assert profile("action").retention_ratio == 0.2


def test_the_document_says_the_values() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \| (\d+) \|", DOCUMENT.read_text(), re.MULTILINE)
    said = {name: [float(value) for value in values] for name, *values in rows}
    assert said == {name: list(map(float, settings.values())) for name, settings in PROFILES.items()}


def test_a_profile_needs_no_torch() -> None:
    code = "import sys; from flashvid import profile; profile('action'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("config", ["action", {"retention_ratio": 0.1}, 0.1])
def test_what_is_no_configuration_is_named(config: object) -> None:
    with pytest.raises(TypeError, match=r"must be a FlashVidConfig.*profile\("):
        compress(torch.rand(2, 4, 8), torch.rand(2, 4), config)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be a FlashVidConfig.*profile\("):
        flashvid(torch.nn.Linear(1, 1), config=config)  # type: ignore[arg-type]
