"""The report of a run: one row for each cell, as CSV for people and as JSON for machines."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from client.replies import Job


@dataclass(frozen=True)
class Row:
    """One cell; a pair that did not come to cells has one row without `cell`.

    Attributes:
        file: name in the output folder.
        seconds: what the service took for the cell.
        preflight: the worst level of the printer's checks: ok, warn or fail.
        recommended: the model that the service recommends for this side.
        needs_review: whether a person should look at this side.
        error_code, error_detail: why there is no file.
    """

    id: int | str
    cell: str
    status: str
    url: str = ""
    file: str = ""
    seconds: float | None = None
    preflight: str = ""
    recommended: str = ""
    needs_review: bool | None = None
    error_code: str = ""
    error_detail: str = ""
    job_id: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def job_rows(job: Job, files: Mapping[str, Path]) -> list[Row]:
    """The rows of a job that has ended, with its saved files by name."""
    rows = []
    for name, cell in job.cells.items():
        opinion = job.opinion(name.partition("_")[0])
        error = cell.error or (job.error if cell.status != "succeeded" else None)
        rows.append(
            Row(
                id=job.id,
                cell=name,
                status=cell.status if cell.status in ("succeeded", "failed") else job.status,
                url=cell.url or "",
                file=files[name].name if name in files else "",
                seconds=cell.seconds,
                preflight=str((cell.preflight or {}).get("level", "")),
                recommended=str(opinion.get("recommended") or ""),
                needs_review=opinion.get("needs_review"),
                error_code=error.code if error else "",
                error_detail=error.detail if error else "",
                job_id=job.job_id,
            )
        )
    if rows:
        return rows
    failure = job.error
    return [failure_row(job.id, failure.code if failure else job.status, failure.detail if failure else "", job.job_id)]


def failure_row(id: int | str, code: str, detail: str, job_id: str = "") -> Row:
    """The row of a pair that did not come to cells."""
    return Row(id, "", "failed", error_code=code, error_detail=detail, job_id=job_id)


def write_report(folder: Path, summary: Mapping[str, Any], rows: Iterable[Row]) -> dict[str, Any]:
    """Write report.csv and report.json, each whole or as it was before.

    Returns:
        What report.json holds: the summary, and the rows as `cells`.
    """
    dicts = [row.to_json() for row in rows]
    report = {**summary, "cells": dicts}
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [field.name for field in fields(Row)])
    writer.writeheader()
    writer.writerows(dicts)
    _replace(folder / "report.json", json.dumps(report, indent=2) + "\n")
    _replace(folder / "report.csv", table.getvalue())
    return report


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8", newline="")
    part.replace(path)
