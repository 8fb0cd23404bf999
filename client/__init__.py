"""The service's Python client and the `cutout` command line. Talks HTTP only: never imports api, worker or shared.

from client import CutoutClient

with CutoutClient("http://127.0.0.1:8001") as cutouts:
    job = cutouts.process(123, front="front.png", back="back.jpg")
    cutouts.download(job, "out")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client.api import CutoutClient
    from client.errors import CutoutError
    from client.replies import Cell, Event, Health, Job, JobPage

__version__ = "0.1.0"

__all__ = ["Cell", "CutoutClient", "CutoutError", "Event", "Health", "Job", "JobPage"]

_HOMES = {"CutoutClient": "api", "CutoutError": "errors"}


def __getattr__(name: str) -> Any:
    # On first use: `cutout --help` needs neither requests nor pydantic, which take most of the start.
    if name not in __all__:
        raise AttributeError(f"module 'client' has no attribute {name!r}")
    return getattr(import_module(f"client.{_HOMES.get(name, 'replies')}"), name)
