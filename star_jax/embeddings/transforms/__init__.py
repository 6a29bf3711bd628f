"""Backward-compatible transforms: maps of a new version's vectors to an old one's."""
