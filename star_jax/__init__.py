"""STAR on JAX: text and graph embeddings of a two-sided marketplace."""

__version__ = "0.1.0"
