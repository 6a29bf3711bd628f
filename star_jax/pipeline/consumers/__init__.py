"""Consumers of embeddings: what is trained on one version and must go on with the next."""
