"""The commands: each parses its options, calls one verb and shows what it returns."""
