"""Datasets: the embedded digits, and any TFDS image dataset."""
