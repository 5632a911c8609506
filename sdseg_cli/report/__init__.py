"""Results as files: tables (CSV, JSON), kept masks and pictures."""
