"""Real films for tests that can use them: present beside a checkout for development, never in the repository."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"

needs_real_films = pytest.mark.skipif(not FOLDER.is_dir(), reason="no real films beside this checkout")


def originals() -> list[Path]:
    """Return full-size chest radiographs, or none."""
    return sorted((FOLDER / "originals").glob("*.png"))


def not_films() -> list[Path]:
    """Return images that are no chest radiographs, or none."""
    return sorted(p for p in (FOLDER / "not_cxr").glob("*") if p.is_file())
