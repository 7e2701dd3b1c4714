"""Layer 1: what the machine is."""
