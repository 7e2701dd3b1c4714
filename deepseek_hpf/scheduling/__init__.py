"""Layer 2: which precision, where and when. Pure decisions, without Keras or a framework."""
