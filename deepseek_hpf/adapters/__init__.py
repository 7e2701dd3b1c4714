"""Layer 3: a plan, applied to a Keras model."""
