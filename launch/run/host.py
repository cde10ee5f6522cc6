"""Facts about the machine and the package versions of a run, for its report."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import socket
import subprocess
from pathlib import Path

import psutil

from launch.common.cpus import available_cpus

_PACKAGES = ("torch", "ray", "peft", "numpy")


def host_facts() -> dict[str, str]:
    """{fact: value} of this machine and process. Starts no CUDA context: another program lists the GPUs."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": _processor(),
        "CPU cores": str(available_cpus()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "GPUs": _gpus(),
        "versions": f"Python {platform.python_version()}, {versions}",
    }


def _processor() -> str:
    """The processor's name. `platform` knows it only on some systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> str:
    """Names and memory of the GPUs, as nvidia-smi lists them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none"
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        return "unknown"  # a driver that does not answer must not end a run
    return "; ".join(line.strip() for line in lines if line.strip()) or "none"
