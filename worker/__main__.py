"""`python -m worker`: run the worker process."""

import sys

from shared.errors import FatalError
from shared.settings import load_settings
from worker.app import run_worker


def main() -> int:
    try:
        return run_worker(load_settings())
    except FatalError as exc:
        message = str(exc)
        print(message if message.startswith("FATAL ERROR") else f"FATAL ERROR: {message}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
