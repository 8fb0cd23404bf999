"""One run of the command line: check the service, do the pairs, show progress, write the report."""

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.api import CutoutClient
from client.batch import Batch, Outcome, in_parallel
from client.errors import FAILED, INTERRUPTED, CutoutError
from client.pairs import Pair
from client.progress import Progress, Style
from client.report import write_report
from client.state import State


def run_pairs(
    client: CutoutClient,
    pairs: list[Pair],
    *,
    folder: Path,
    options: Mapping[str, Any],
    concurrency: int,
    resume: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Do all pairs and write report.csv and report.json to `folder`, also when Ctrl-C ends the run.

    Returns:
        The exit status: 0 when every cutout is there, 1 when not, 130 after Ctrl-C.
    Raises:
        InputError: the folder cannot be used.
        CutoutError: the service does not answer, or wants another API key.
    """
    models = client.health().models  # a wrong address is told before a thousand files are read
    cells = {str(pair.id): _count_cells(pair, options, len(models)) for pair in pairs}
    style: Style = "silent" if as_json else "bar" if sys.stderr.isatty() else "lines"
    started, outcomes, stop = datetime.now(UTC), list[Outcome](), None
    with State(folder) as state, closing(Progress(style, cells)) as progress:
        batch = Batch(client, folder, state, options, resume=resume, **how)
        try:
            for outcome in in_parallel(
                pairs, lambda p: batch.do(p, lambda done: progress.cells_done(p.id, done)), concurrency
            ):
                outcomes.append(outcome)
                progress.pair_done(outcome)
        except (KeyboardInterrupt, CutoutError) as exc:
            stop = exc
        summary = _summary(client, pairs, outcomes, started)
        report = write_report(folder, summary, [row for outcome in outcomes for row in outcome.rows])
    _tell(report, folder, as_json)
    if isinstance(stop, KeyboardInterrupt):
        print("cutout: stopped. Jobs that were sent go on; the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    if stop is not None:
        raise stop
    return FAILED if summary["failed"] else 0


def _count_cells(pair: Pair, options: Mapping[str, Any], all_models: int) -> int:
    models = {**options, **pair.options}.get("models")
    return len(pair.sides) * (len(models) if isinstance(models, list) else all_models)


def _summary(client: CutoutClient, pairs: list[Pair], outcomes: list[Outcome], started: datetime) -> dict[str, Any]:
    good = sum(outcome.is_good for outcome in outcomes)
    return {
        "service": client.base_url,
        "started_at": started.isoformat(),
        "completed_at": datetime.now(UTC).isoformat(),
        "pairs": len(pairs),
        "succeeded": good,
        "failed": len(outcomes) - good,
        "kept": sum(outcome.is_kept for outcome in outcomes),
        "missing": len(pairs) - len(outcomes),
    }


def _tell(report: Mapping[str, Any], folder: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report))
        return
    kept = f" ({report['kept']} were done already)" if report["kept"] else ""
    counts = f"{report['succeeded']} of {report['pairs']} pairs succeeded{kept}, {report['failed']} failed"
    print(f"{counts}: {folder / 'report.csv'}")
