"""Measurements; each is run by `python -m benchmarks.NAME`."""

import worker  # noqa: F401 - sets how torch allocates, which must be before anything here imports torch
