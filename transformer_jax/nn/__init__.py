"""The mathematics of a Transformer: attention, positions, layers, blocks, KV caches. Imports jax and flax only."""
