"""Immutable versions of embeddings and models as plain files, and who may read which."""
