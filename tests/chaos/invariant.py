"""What holds for every job that was accepted, whatever was killed meanwhile."""

import json
import os
import time
from collections import Counter, defaultdict

from PIL import Image

from shared.jobs import FINAL, CellStatus, Job, JobStatus
from shared.storage import job_of
from tests.chaos.stack import Accepted, Stack
from worker.sweeper import Sweeper

_HOURS_S = 7200


def check_invariant(stack: Stack, accepted: list[Accepted], timeout_s: float = 60) -> Counter[str]:
    """Wait for quiet, then fail with everything that is wrong.

    Each job has one final state, one final event that says the same, and one final webhook (told once or more often
    under one id); every succeeded cell has its whole file of the right size. After the sweep no unfinished file, no
    work folder and no output of these jobs that no cell names is left.

    Returns:
        How many jobs ended in which state.
    """
    jobs = stack.settle(accepted, timeout_s)
    told = _final_webhooks(stack)
    faults = [
        f"{job.job_id} ({job.status}): {fault}"
        for sent, job in zip(accepted, jobs, strict=True)
        for fault in (
            *_state_faults(stack, job),
            *_file_faults(stack, job, sent),
            *_webhook_faults(job, told[job.job_id]),
        )
    ]
    faults += _leftovers(stack, jobs)
    assert not faults, "\n".join([*faults, stack.logs()])
    return Counter(job.status.value for job in jobs)


def _state_faults(stack: Stack, job: Job) -> list[str]:
    if not job.is_final:
        return ["has not ended"]
    faults = []
    finals = [event for _, event in stack.store.events(job.job_id) if event.get("final")]
    if [event["status"] for event in finals] != [job.status]:
        faults.append(f"final events: {finals}")
    good = sum(cell.status == CellStatus.SUCCEEDED for cell in job.cells.values())
    if any(cell.status not in (CellStatus.SUCCEEDED, CellStatus.FAILED) for cell in job.cells.values()):
        faults.append("has open cells")
    if job.status == JobStatus.SUCCEEDED and good != len(job.cells):
        faults.append(f"succeeded with {good} of {len(job.cells)} cells")
    if job.status == JobStatus.PARTIAL and not 0 < good < len(job.cells):
        faults.append(f"partial with {good} of {len(job.cells)} cells")
    if any((cell.status == CellStatus.FAILED) != (cell.error is not None) for cell in job.cells.values()):
        faults.append("a cell's error does not fit its status")
    return faults


def _file_faults(stack: Stack, job: Job, sent: Accepted) -> list[str]:
    faults = []
    for name, cell in job.cells.items():
        if cell.status != CellStatus.SUCCEEDED:
            continue
        path = stack.outputs / str(cell.url).rpartition("/")[2]
        try:
            with Image.open(path) as image:
                image.load()
                size = image.size
        except (OSError, SyntaxError) as exc:
            faults.append(f"{name}: {exc!r}")
            continue
        if size != sent.sizes[name.split("_")[0]] or path.stat().st_size != cell.bytes:
            faults.append(f"{name}: {size}, {path.stat().st_size} bytes; recorded {cell.bytes}")
    return faults


def _final_webhooks(stack: Stack) -> dict[str, set[tuple[str, str]]]:
    """job id -> (webhook id, type) of what the receiver was told about ends."""
    told: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for received in list(stack.receiver.received):
        body = json.loads(received.body)
        if body["type"].removeprefix("job.") in FINAL:
            told[body["data"]["job_id"]].add((received.id, body["type"]))
    return told


def _webhook_faults(job: Job, told: set[tuple[str, str]]) -> list[str]:
    if [kind for _, kind in told] == [f"job.{job.status}"]:
        return []
    return [f"webhooks: {sorted(told)}"]


def _leftovers(stack: Stack, jobs: list[Job]) -> list[str]:
    """What is still there after the sweep, all files being old."""
    old = time.time() - _HOURS_S
    for path in stack.outputs.rglob("*"):
        os.utime(path, (old, old))
    Sweeper(stack.settings, stack.store, stack.storage).remove_old_files()
    ids, named = {job.job_id for job in jobs}, {url.rpartition("/")[2] for job in jobs for url in job.output_urls}
    paths = [path.relative_to(stack.outputs) for path in stack.outputs.rglob("*") if path.name != ".work"]
    return [
        f"left behind: {path}"
        for path in paths
        if path.suffix == ".part" or path.parts[0] == ".work" or (job_of(path.name) in ids and path.name not in named)
    ]
