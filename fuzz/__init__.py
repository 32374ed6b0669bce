"""Attacks on what opens films: `python -m fuzz.decoders`. A developer's tool, not part of the package."""
