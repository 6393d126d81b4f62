"""Inference with a Run: generate, translate, classify, tag, score, attention maps, quantize."""
