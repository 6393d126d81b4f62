"""Hugging Face model families, one table each."""
