"""What every package uses: errors, settings, files, progress, processes. No torch."""
