"""Where the real data lies: input/real/<name>/, or shared/data/<name>/ beside the repository; see tests/README.md."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def find_source(name: str) -> Path:
    """The folder of a data set; that in input/real/ where neither is there."""
    own, beside = ROOT / "input" / "real" / name, ROOT.parent / "shared" / "data" / name
    return beside if beside.is_dir() and not own.is_dir() else own


def require(path: Path) -> None:
    """Ends the program where real data is absent."""
    if not path.exists():
        sys.exit(f"{path} is absent: tests/README.md says where the real data is had and how it is laid out")
