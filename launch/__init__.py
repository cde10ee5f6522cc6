"""The commands that a person runs, and what they share."""

import sys
from pathlib import Path

# `python launch/x.py` puts this folder first on the path, where our `common` or `report` would hide packages of that name.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != _HERE]
