"""The former name of `launch/export.py`, which only says so."""

import sys

if __name__ == "__main__":
    print("error: launch/merge.py is now launch/export.py, with the same flags: call that", file=sys.stderr)
    sys.exit(2)
