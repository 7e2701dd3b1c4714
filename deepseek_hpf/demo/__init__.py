"""The demonstration: a ResNet trained in float32 and under a policy, side by side."""
