"""Embeddings where they are asked for."""
