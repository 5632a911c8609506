"""Scans and masks: files, grids, and the model's square slices. numpy and friends, never torch."""
