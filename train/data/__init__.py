"""From sources of text to batches."""
