"""Hugging Face folders in and out: safetensors and config.json, one file a family, declared as tables."""
