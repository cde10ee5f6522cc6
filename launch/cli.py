"""What every program in this folder shares: typed flags from a dataclass, and one-line errors with exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from launch.disk import disk_trouble
from stylevar.errors import UserError

ConfigT = TypeVar("ConfigT")


def run(main: Callable[[ConfigT], None], config_type: type[ConfigT], default: ConfigT | None = None) -> None:
    """Parse `config_type` from the command line and call `main` with it.

    A `UserError` becomes `error: ...` on stderr and exit code 2; Ctrl-C ends with code 130. Other exceptions are bugs
    and keep their traceback.
    """
    description = sys.modules[main.__module__].__doc__

    def parse_and_run() -> None:
        # Inside, since a config may refuse its values.
        if default is None:
            main(tyro.cli(config_type, description=description))
        else:
            main(tyro.cli(config_type, description=description, default=default))

    exit_code(parse_and_run)


def exit_code(body: Callable[[], None]) -> None:
    """Run `body`, turning a user's mistake, or a disk that is full or broken, into one line and exit code 2."""
    try:
        body()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        reason = disk_trouble(error)
        if reason is None:
            raise
        text = f"error: a file cannot be read or written ({reason}): make room or mend the disk, then start again"
        print(text, file=sys.stderr)
        sys.exit(2)
