"""How much memory this process holds, on the host and on its device; for the heartbeat's report. And giving it back."""

import ctypes
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from worker.ticker import Ticker

#: How often free memory is given back (s).
_TRIM_S = 30.0
_STATUS = Path("/proc/self/status")


def memory_report(device: torch.device) -> dict[str, Any]:
    """Bytes held now and at most since the start.

    Returns:
        {"resident_bytes", "resident_peak_bytes", "device_bytes", "device_peak_bytes"}; the device's are those that
        torch has taken from it (its cache included), and None where the device is the host itself.
    """
    report: dict[str, Any] = {**_resident(), "device_bytes": None, "device_peak_bytes": None}
    if device.type == "cuda":
        report["device_bytes"] = torch.cuda.memory_reserved(device)
        report["device_peak_bytes"] = torch.cuda.max_memory_reserved(device)
    return report


def _resident() -> dict[str, int | None]:
    # In KB on Linux, in bytes on a Mac.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    now = None
    if _STATUS.exists():
        now = (
            next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS:")) * 1024
        )
    return {"resident_bytes": now, "resident_peak_bytes": peak}


class MemoryTrimmer(Ticker):
    """Gives memory that is free back to the system, until it is closed.

    The C library keeps what large pictures were freed from, in an arena of every thread, and its pieces grow: without
    this the idle worker held 1.1 GB after 1,000 jobs of all sizes and 1.4 GB after 2,000 (benchmarks.soak).
    """

    def __init__(self) -> None:
        super().__init__("memory", _TRIM_S)
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own; others do without

    def tick(self) -> None:
        """Give back what is free; it takes milliseconds, outside Python's lock."""
        if self._trim is not None:
            self._trim(0)
