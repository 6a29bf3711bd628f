"""Hard negatives: what the trained text model takes for matches, and nobody applied to."""
