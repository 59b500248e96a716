"""One module for each command, or for a few that do alike: its options, and nothing heavy at import."""
