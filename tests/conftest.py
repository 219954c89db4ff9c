"""Shared test set-up: a cache of the test run's own, so that tests neither read nor fill the user's."""

import os
import tempfile

os.environ["ROOTSTOCK_CACHE"] = tempfile.mkdtemp(prefix="rootstock-test-cache-")
