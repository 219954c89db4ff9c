"""Property tests: random inputs by hypothesis. ROOTSTOCK_FUZZ=long looks longer, and elsewhere each time."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, configuration, settings

# One folder serves all examples of a test, which write their files anew; what is slow on a busy machine is no mistake.
COMMON = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
settings.register_profile("default", derandomize=True, max_examples=60, **COMMON)
settings.register_profile("long", max_examples=2_000, **COMMON)
settings.load_profile(os.environ.get("ROOTSTOCK_FUZZ") or "default")
# What hypothesis keeps of its own goes with the test run's cache, and not into the checkout.
configuration.set_hypothesis_home_dir(Path(os.environ["ROOTSTOCK_CACHE"]) / "hypothesis")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """What is unpacked or trained on the way goes with the test."""
    monkeypatch.setenv("ROOTSTOCK_CACHE", str(tmp_path / "cache"))
