"""Text files and their settings, for the tests of sources and of what is made from them."""

from hypothesis import settings

from train.config import DataConfig

TEXT = "First line.\r\n\tZweite Zeile: Füchse, 狐.\n" * 11

lightly = settings(max_examples=60, deadline=None, database=None)


def text_config(path, val_fraction=0.1):
    return DataConfig(source="text", path=str(path), val_fraction=val_fraction)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
