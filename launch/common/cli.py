"""The frame of every program: typed flags from a dataclass, one-line errors, and exit codes for signals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from launch.common import console
from launch.common.disk import disk_trouble, path_trouble
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
        # Parsed inside, because a config may reject its values.
        if default is None:
            main(tyro.cli(config_type, description=description))
        else:
            main(tyro.cli(config_type, description=description, default=default))

    exit_code(parse_and_run)


def about(doc: str | None) -> str:
    """A module's docstring for `--help`, with every example command on its own line."""
    # tyro joins the lines of a paragraph unless they are indented.
    lines = (doc or "").splitlines()
    return "\n".join(f"  {line}" if line.startswith(("python ", "ray ")) else line for line in lines)


def exit_code(body: Callable[[], None]) -> None:
    """Run `body` and exit with the right code.

    A user's mistake, an unusable path, or a disk that is full or broken prints one line and exits with 2. An interruption
    exits with 130.
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
            if (reason := disk_trouble(error)) is not None:
                text = f"a file cannot be read or written ({reason}): free space or repair the disk, then start again"
            elif (unusable := path_trouble(error)) is not None:
                text = f"{unusable}: check the path and its permissions"
            else:
                raise
            print(f"error: {text}", file=sys.stderr)
            sys.exit(2)
