"""A geometric chest phantom: films that are drawn from shapes, so no patient is in them."""

from synthetic.findings import SUPPORTED_FINDINGS
from synthetic.phantom import SyntheticFilm, SyntheticFinding, make_film

__all__ = ["SUPPORTED_FINDINGS", "SyntheticFilm", "SyntheticFinding", "make_film"]
