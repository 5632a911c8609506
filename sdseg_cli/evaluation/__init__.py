"""Predictions against references, run against run, seed against seed."""
