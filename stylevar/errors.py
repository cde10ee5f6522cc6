"""The one exception that stands for a user's mistake."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: the message names the value, the bound and the remedy.

    The programs in `launch/` print it as one line and exit with code 2; anything else is a bug and keeps its traceback.
    """
