"""Settings of the whole suite."""

from __future__ import annotations

import os

from hypothesis import settings

# No time limit per example: machines are shared, and slow is not wrong. In CI the same examples each time.
settings.register_profile("suite", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("suite")
