"""Embedding tables on disk."""
