"""Measures any weights on any labelled films: `python -m evaluation`."""
