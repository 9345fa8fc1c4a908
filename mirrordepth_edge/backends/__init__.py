"""Inference backends: one module per runtime, all with the interface in `base`."""
