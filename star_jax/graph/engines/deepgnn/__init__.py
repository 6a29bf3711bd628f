"""Sampling through DeepGNN's graph engine, an optional extra."""
