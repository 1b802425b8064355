"""Settings of the whole test set."""

from __future__ import annotations

from hypothesis import settings

# Equal examples in every run, and no verdict that depends on how busy the machine is.
settings.register_profile("nanoflux", deadline=None, derandomize=True)
settings.load_profile("nanoflux")
