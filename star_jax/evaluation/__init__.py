"""Metrics as functions of numpy arrays, and the simple baselines beside them."""
