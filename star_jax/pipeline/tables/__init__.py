"""Reading, checking and writing the input tables."""
