"""Measurements, run from the root of the checkout: `python -m benchmarks.NAME`."""
