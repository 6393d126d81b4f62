"""Attention explorer: a text inside a model as one self-contained HTML page. `explore` is in page.py."""
