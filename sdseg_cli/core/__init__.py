"""Used by every package: errors, settings, files, progress, processes. No torch."""
