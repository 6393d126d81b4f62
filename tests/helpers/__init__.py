"""What several test modules share: arrays, files, texts, small models, commands."""
