"""Hypothesis profiles: a quick one for each commit, `HYPOTHESIS_PROFILE=thorough` for a night."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Machines that build are slow and shared: time says nothing about a test there.
settings.register_profile("quick", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("quick"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
