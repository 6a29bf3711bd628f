"""Reference methods that need neither a text model nor a graph model."""
