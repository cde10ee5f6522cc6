"""The commands that users run, and the packages that the commands share."""

import sys
from pathlib import Path

# `python launch/x.py` puts this folder first on the path. Our `common` or `report` would then hide packages of that name.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != _HERE]
