"""Neighbour samplers over one store; every draw is a function of its counters."""
