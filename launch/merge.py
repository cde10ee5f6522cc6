"""The former name of `launch/export.py`, which only says so."""

import sys

if __name__ == "__main__":
    print("error: launch/merge.py has been renamed: run launch/export.py, which takes the same flags", file=sys.stderr)
    sys.exit(2)
