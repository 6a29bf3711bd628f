"""A market too large for memory: every block of it depends on a seed and its own number alone."""
