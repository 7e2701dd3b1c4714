"""Agreement between replicas: one decision a step on overflow, loss scale and plan."""
