"""The former name of `launch/export.py`. It only prints the new name."""

import sys

if __name__ == "__main__":
    print("error: launch/merge.py has been renamed: run launch/export.py, which takes the same flags", file=sys.stderr)
    sys.exit(2)
