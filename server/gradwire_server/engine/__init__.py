"""Engines run plans: forward values from the leaves, gradients back to them."""
