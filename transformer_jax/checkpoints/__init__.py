"""Checkpoints of a run directory: saved in the background, sealed, found and restored; their typed metadata."""
