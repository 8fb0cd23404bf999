"""`python -m worker`: run the worker process."""

import contextlib
import sys
import threading

from shared.errors import FatalError
from shared.settings import load_settings


def import_torch() -> None:
    """Import torch; what is wrong with it the worker meets again, and says."""
    with contextlib.suppress(Exception):
        import torch  # noqa: F401


def main() -> int:
    try:
        settings = load_settings()
        # Most of a start is imports, most of them torch's: its files are looked for and read beside all others.
        threading.Thread(target=import_torch, name="import-torch").start()
        from worker.app import run_worker

        return run_worker(settings)
    except FatalError as exc:
        message = str(exc)
        print(message if message.startswith("FATAL ERROR") else f"FATAL ERROR: {message}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
