"""Training steps of a model in float32, under the peers' mixed precision and ours, in turns."""
