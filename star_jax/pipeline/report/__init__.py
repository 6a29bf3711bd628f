"""Figures and the page of the report."""
