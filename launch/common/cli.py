"""What every program in this folder shares: typed flags from a dataclass, one-line errors, and how signals end it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from launch.common import console
from launch.common.disk import disk_trouble
from launch.common.stop import STOPPED, Interrupts
from stylevar.errors import UserError

ConfigT = TypeVar("ConfigT")


def run(main: Callable[[ConfigT], None], config_type: type[ConfigT], default: ConfigT | None = None) -> None:
    """Parse `config_type` from the command line and call `main` with it.

    A `UserError` becomes `error: ...` on stderr and exit code 2; Ctrl-C ends with code 130. Other exceptions are bugs
    and keep their traceback.
    """
    description = about(sys.modules[main.__module__].__doc__)

    def parse_and_run() -> None:
        # Inside, since a config may refuse its values.
        if default is None:
            main(tyro.cli(config_type, description=description))
        else:
            main(tyro.cli(config_type, description=description, default=default))

    exit_code(parse_and_run)


def about(doc: str | None) -> str:
    """A module's docstring as `--help` shows it: every example command stays on a line of its own."""
    # tyro joins the lines of a paragraph, except those that are indented.
    lines = (doc or "").splitlines()
    return "\n".join(f"  {line}" if line.startswith(("python ", "ray ")) else line for line in lines)


def exit_code(body: Callable[[], None]) -> None:
    """Run `body`; a user's mistake, or a disk that is full or broken, is one line and exit code 2, an interruption 130.

    Output goes through `launch.common.console`, signals through `launch.common.stop`.
    """
    console.install()
    with Interrupts():
        try:
            body()
        except UserError as error:
            print(f"error: {error.for_command_line()}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(STOPPED)
        except Exception as error:
            reason = disk_trouble(error)
            if reason is None:
                raise
            text = f"error: a file cannot be read or written ({reason}): make room or mend the disk, then start again"
            print(text, file=sys.stderr)
            sys.exit(2)
