"""Neighbourhoods drawn inside the compiled program, from a graph that lies on the devices."""
