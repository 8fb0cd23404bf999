"""A retry: a new job of the same matrix that computes only what the old one did not deliver.

A final state never changes, so a retry is a job of its own, with its own id and files. Good cells are its cells from
the start, linked; prepared sides and uploads are linked as long as they are kept, URLs are fetched again when not.
What became of a side's extraction goes with its cells; a side without one whose extraction failed is asked for again.
"""

import hashlib
import json

from flask import g

from api.accepting import enqueue, once
from api.caller import caller
from api.headers import Terms
from api.service import Service
from shared.errors import InvalidRequest, JobStillOpen, NothingToRetry, OutputNotFound, SourceExpired, StoreUnavailable
from shared.jobs import CellRecord, CellStatus, ExtractionReport, Job, Side, Source, cell_name, new_job
from shared.storage import name_of
from shared.store import Claim
from shared.store.counters import RETRIES
from shared.takeover import take_over


def retry(service: Service, old: Job, names: list[str], terms: Terms) -> tuple[Job, bool]:
    """Queue the retry of a job that has ended.

    Args:
        names: the cells to compute; every failed one when empty. Other failed cells keep their error.
    Returns:
        The new job, and whether an earlier request with the same Idempotency-Key had made it.
    Raises:
        JobStillOpen, NothingToRetry, SourceExpired, QueueFull.
        IdempotencyKeyReused: the key stands for another request.
        InvalidRequest: the job has no cell of such a name, or a model of theirs is not offered any more.
    """
    unknown = [name for name in names if name not in old.cells]
    if unknown:
        raise InvalidRequest(f"?cell: {unknown[0][:100]!r} is not one of {', '.join(old.cells)}")

    def make(job_id: str, claim: Claim | None) -> Job | None:
        if not old.is_final:
            raise JobStillOpen(f"The job {old.job_id} is {old.status}; cancel it or wait for its end")
        again = names or [name for name, cell in old.cells.items() if cell.status == CellStatus.FAILED]
        if not again:
            raise NothingToRetry(f"Every cell of {old.job_id} was delivered; name one (?cell=) to compute it again")
        _check_models(service, again)
        service.store.raise_if_full()
        try:
            new = _new_job(service, old, job_id, frozenset(again), terms)
            if enqueue(service, new, claim):
                service.store.counters.add(RETRIES, "job")
                return new
        except StoreUnavailable:
            raise  # Redis may have taken the record before it went, and the job is done then
        except BaseException:
            service.storage.remove_job(job_id)
            raise
        service.storage.remove_job(job_id)
        return None

    return once(service, terms.idempotency_key, lambda: _digest(old, names), make)


def _check_models(service: Service, names: list[str]) -> None:
    """Refuse cells that no worker could compute: MODELS may have lost one since the job was made."""
    models = service.settings.models
    gone = [name for name in names if name.split("_")[1] not in models]
    if gone:
        raise InvalidRequest(f"{gone[0]} cannot be tried again: its model is not one of {', '.join(models)} any more")


def _digest(old: Job, names: list[str]) -> str:
    """What makes two retries the same, and no retry the same as a POST /process: the job and the cells named."""
    return hashlib.sha256(json.dumps({"retry_of": old.job_id, "cells": sorted(set(names))}).encode()).hexdigest()


def _new_job(service: Service, old: Job, job_id: str, again: frozenset[str], terms: Terms) -> Job:
    job = new_job(
        job_id=job_id,
        client_id=old.id,
        sources=old.sources,
        models=old.models,
        options=old.options,
        request_id=g.request_id,
        caller=caller(),
        deadline=terms.deadline,
        retry_of=old.job_id,
        use_cache=False,  # asked for again means computed again
    )
    cells = {name: _kept(service, old, name, job) for name in old.cells if name not in again}
    job = job.model_copy(update={"cells": job.cells | {name: cell for name, cell in cells.items() if cell}})
    return job.model_copy(update={"sources": _sources(service, old, job), "extraction": _extraction(service, old, job)})


def _kept(service: Service, old: Job, name: str, job: Job) -> CellRecord | None:
    """A cell as the new job begins with it; None when its file is gone and it has to be computed after all."""
    record = old.cells[name]
    if record.status != CellStatus.SUCCEEDED:
        return record
    side, model = name.split("_")
    taken = take_over(service.storage, record, (old.job_id, side, model), job, side)
    return taken and taken[0]


def _extraction(service: Service, old: Job, job: Job) -> dict[str, ExtractionReport]:
    """The reports that are true of the new job too; what was spent is the old job's."""
    reports = {}
    for side, report in old.extraction.items():
        if not _is_asked_again(old, job, side):
            address = report.original_url and _linked_original(service, job, side, report.original_url)
            spent = {"calls": 0, "tokens": None, "seconds": None}
            update = {"original_url": address, "cached": report.status == "extracted", **spent}
            reports[side] = report.model_copy(update=update)
    return reports


def _is_asked_again(old: Job, job: Job, side: str) -> bool:
    """Whether an extraction that failed may be tried again: no cell of the side was made from the original instead."""
    report = old.extraction.get(side)
    is_failed = report is not None and report.status == "failed"
    return is_failed and all(job.cells[cell_name(side, model)].status != CellStatus.SUCCEEDED for model in job.models)


def _linked_original(service: Service, job: Job, side: str, url: str) -> str | None:
    name = service.storage.output_name(job.id, job.job_id, side, "original")
    try:
        service.storage.link_output(name_of(url), name)
    except OutputNotFound:
        return None  # removed by age
    return service.storage.url(name)


def _sources(service: Service, old: Job, job: Job) -> dict[Side, Source]:
    """Where the new job's pictures come from, with what is kept of the old one's linked."""
    storage, sources = service.storage, dict(old.sources)
    kept = storage.work_files(old.job_id)
    for side, source in old.sources.items():
        linked = 0
        names = [name for name in kept if name.startswith(f"{side}.")]  # front.upload, front.prepared
        if _is_asked_again(old, job, side):
            names = [name for name in names if not name.endswith(".prepared")]  # the original, which is not wanted
        for name in names:
            try:
                storage.link_work(old.job_id, name, job.job_id, name)
            except OutputNotFound:
                continue  # swept just now
            linked += 1
        has_work = any(job.cells[cell_name(side, model)].status == CellStatus.QUEUED for model in job.models)
        if source.kind == "file":
            if has_work and not linked:
                raise SourceExpired(f"The {side} of {old.job_id} is not kept any more (SOURCE_TTL_S); send it again")
            sources[side] = Source(kind="file", path=f".work/{job.job_id}/{side}.upload")
    return sources
