"""Worker logs whose lines name the role and its step."""

from __future__ import annotations

import logging
import sys


class RoleLog:
    """Adds the name of the role and its current step to every log line of this process."""

    def __init__(self, name: str) -> None:
        self.name, self.step = name, -1
        handler = logging.StreamHandler(sys.stderr)
        handler.addFilter(self._label)
        handler.setFormatter(logging.Formatter("%(levelname)s [%(role)s] %(message)s"))
        logging.getLogger().handlers = [handler]

    def _label(self, record: logging.LogRecord) -> bool:
        record.role = self.name if self.step < 0 else f"{self.name}, step {self.step}"
        return True
