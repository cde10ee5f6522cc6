"""A TensorBoard event file that is written immediately and sorts after all earlier ones."""

from __future__ import annotations

import io
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\..*")


class EventFile:
    """A new event file in a run's folder. Every event is in the file when the method that writes it returns.

    TensorBoard's own writer works in a thread, where a full disk causes a traceback that no caller can catch. It also names
    files by the clock, and readers sort them by name: if the clock was set back, the end of a curve would come before its
    beginning. Here, a new file always sorts last.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        """`purge_step`: hide earlier files' events of this step and later ones. The folder must exist.

        Every method raises OSError if the file cannot be written.
        """
        matches = (_NAME.fullmatch(file.name) for file in folder.iterdir())
        last = max((int(match[1]) for match in matches if match), default=-1)
        number = max(int(time.time()), last + 1)
        path = folder / f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._size = 0
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write {tag: value} at `step`, all or nothing."""
        self._add(step, Summary(value=[Summary.Value(tag=k, simple_value=float(v)) for k, v in values.items()]))

    def image(self, step: int, tag: str, image_u8: Tensor) -> None:
        """Write a picture, uint8 [3, H, W]."""
        self._add(step, summary.image(tag, image_u8, dataformats="CHW"))

    def text(self, step: int, tag: str, text: str) -> None:
        """Write a text."""
        self._add(step, summary.text(tag, text))

    def close(self) -> None:
        """Flush the file to disk and close it."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _add(self, step: int, content: Summary) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=content))

    def _write(self, event: Event) -> None:
        buffer = io.BytesIO()
        RecordWriter(buffer).write(event.SerializeToString())
        record = buffer.getvalue()
        try:
            written = 0
            while written < len(record):
                written += os.write(self._descriptor, record[written:])
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(record)
