"""Bulk work as Apache Beam pipelines, for inputs larger than one machine."""
