"""Exceptions for user errors."""

from __future__ import annotations


class UserError(Exception):
    """A user error. The message names the value, the bound and the remedy.

    The programs in `launch/` print it as one line and exit with code 2. Any other exception is a bug and shows a traceback.
    """

    def for_command_line(self) -> str:
        """The message as a program prints it."""
        return str(self)


class BadSetting(UserError):
    """A setting that is refused. In Python the message names the argument, on a command line the flag."""

    def __init__(self, name: str, value: object, why: str) -> None:
        super().__init__(name, value, why)
        self.name, self.value, self.why = name, value, why

    def __str__(self) -> str:
        return f"{self.name}={self.value!r}: {self.why}"

    def for_command_line(self) -> str:
        """The message with the flag; a missing flag has no value."""
        value = "" if self.value is None else f" {self.value}"
        return f"--{self.name.replace('_', '-')}{value}: {self.why}"
