"""`python -m worker.health`: exit 0 when this worker has reported itself ready; for container health checks.

Imports neither torch nor Celery, so that a check every few seconds costs little.
"""

import sys

from shared.errors import FatalError, StoreUnavailable
from shared.settings import load_settings
from shared.store import Store


def main() -> int:
    try:
        settings = load_settings()
        reports = {report["name"]: report for report in Store.from_settings(settings).workers()}
    except (FatalError, StoreUnavailable) as exc:
        print(exc, file=sys.stderr)
        return 1
    status = reports.get(settings.worker_name, {}).get("status", "not reporting")
    print(status)
    # A draining worker still finishes its work; restarting it now would only lose time.
    return 0 if status in ("ready", "draining") else 1


if __name__ == "__main__":
    sys.exit(main())
