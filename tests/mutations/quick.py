"""A pytest plugin: the same examples each time, and no search for smaller ones once a test is red."""

from __future__ import annotations

from hypothesis import Phase, settings

settings.register_profile(
    "planted", deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate], database=None
)
