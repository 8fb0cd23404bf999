"""What only all cells of a job together can tell: the models' second opinion per side, and a contact sheet.

A side whose extraction has a warning (redrawn, or failed and the original used) is for a person to look at, whatever
the models say: they agree on a redrawn design as well as on the right one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.jobs import CellStatus, Job, cell_name
from shared.storage import FolderStorage, name_of
from worker.cells import PROOF_SIDE, options_of
from worker.images import Picture
from worker.images.opinion import own_alpha_opinion, second_opinion
from worker.images.proofs import encode_webp, shrink
from worker.images.sheet import SheetRow, contact_sheet
from worker.pictures import PreparedSides

#: Quality of the sheet (lossy WebP, 0-100).
_SHEET_QUALITY = 85


class Reviewer:
    """Reads what the cells kept in the job's work folder."""

    def __init__(self, storage: FolderStorage, prepared: PreparedSides) -> None:
        self._storage = storage
        self._prepared = prepared

    def review(self, job: Job) -> dict[str, Any]:
        """{"sides": {side: opinion and extraction}}, and "contact_sheet" when proofs were asked for."""
        review: dict[str, Any] = {"sides": side_reports(job, {side: self._opinion(job, side) for side in job.sides})}
        if options_of(job).proofs:
            review["contact_sheet"] = self._contact_sheet(job, review["sides"])
        return review

    def _good_models(self, job: Job, side: str) -> list[str]:
        return [model for model in job.models if job.cells[cell_name(side, model)].status == CellStatus.SUCCEEDED]

    def _opinion(self, job: Job, side: str) -> dict[str, Any] | None:
        masks, preflights = {}, {}
        for model in self._good_models(job, side):
            name = cell_name(side, model)
            mask = self._prepared.load_array(job.job_id, f"{name}-alpha")
            if mask is not None:
                masks[model] = mask
                preflights[model] = job.cells[name].preflight or {}
        if masks and all(job.cells[cell_name(side, model)].own_alpha for model in masks):
            return dict(own_alpha_opinion(masks))
        wanted = options_of(job).print
        fades_wanted = wanted is not None and wanted.alpha == "halftone"
        return dict(second_opinion(masks, preflights, fades_wanted=fades_wanted)) if masks else None

    def _contact_sheet(self, job: Job, opinions: dict[str, Any]) -> str | None:
        """Address of a page with every side's original and proofs; None when nothing is left to show."""
        rows = {}
        for side in job.sides:
            names = {model: f"{cell_name(side, model)}-small" for model in self._good_models(job, side)}
            loaded = {model: self._prepared.load_array(job.job_id, name) for model, name in names.items()}
            cutouts = {model: array for model, array in loaded.items() if array is not None}
            # A side whose cells were all taken over need not be prepared again, and then there is nothing to show.
            if cutouts and self._prepared.exists(job.job_id, side):
                reports = {model: job.cells[cell_name(side, model)].preflight for model in cutouts}
                levels = {model: str(report["level"]) for model, report in reports.items() if report}
                prepared = self._prepared_side(job.job_id, side)
                original = self._original(job, side)
                rows[side] = SheetRow(prepared, cutouts, opinions.get(side), levels, original)
        if not rows:
            return None
        first = next(iter(rows))
        name = self._storage.output_name(job.id, job.job_id, first, "contact_sheet", "webp")
        self._storage.write_atomic(name, encode_webp(contact_sheet(rows), _SHEET_QUALITY))
        return self._storage.url(name)

    def _prepared_side(self, job_id: str, side: str) -> npt.NDArray[np.uint8]:
        size = self._prepared.size(job_id, side)
        with self._prepared.open(job_id, side, size.width * size.height) as picture:
            return _small(picture)

    def _original(self, job: Job, side: str) -> npt.NDArray[np.uint8] | None:
        """The side as it came, when its extracted design went through the models instead."""
        report = job.extraction.get(side)
        if report is None or report.original_url is None:
            return None
        with self._prepared.open_file(self._storage.path(name_of(report.original_url))) as picture:
            return _small(picture)


def side_reports(job: Job, opinions: Mapping[str, dict[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """Per side, where there is anything: the models' opinion, and `extraction` with its warning as a reason to look."""
    reports = {side: dict(opinion) for side, opinion in opinions.items() if opinion}
    for side, extraction in job.extraction.items():
        report = reports.setdefault(side, {})
        if extraction.warning:
            reasons = (report.get("review_reason"), extraction.warning)
            report |= {"needs_review": True, "review_reason": " ".join(reason for reason in reasons if reason)}
        report["extraction"] = extraction.model_dump(mode="json")
    return reports


def _small(picture: Picture) -> npt.NDArray[np.uint8]:
    alpha = np.full(picture.rgb.shape[:2], 255, np.uint8) if picture.alpha is None else picture.alpha
    return shrink(np.dstack((picture.rgb, alpha)), PROOF_SIDE)
