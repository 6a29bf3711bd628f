"""A synthetic labour market whose truth is known."""
