"""Data sets: prepared, split, checked."""
