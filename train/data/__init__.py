"""Training data: from sources of text to examples to batches."""
