"""Precision that follows the training run: what was seen, what is at fault, what is switched."""
