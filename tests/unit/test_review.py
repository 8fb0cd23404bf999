"""What a side's report says: the models' opinion, and what became of its extraction."""

from typing import Any

import pytest

from api.report_schemas import SideReport
from shared.jobs import ExtractionReport, Job, Source, new_job
from worker.review import side_reports

AGREED = {"agreement": 0.99, "recommended": "rmbg", "needs_review": False, "review_reason": ""}
DISPUTED = {**AGREED, "needs_review": True, "review_reason": "The models disagree."}
REDRAWN = ExtractionReport(status="extracted", reason="photo", redrawn=True, score=0.1, warning="It differs.")


def job(front: ExtractionReport | None) -> Job:
    return new_job(
        job_id="a",
        client_id=1,
        sources={"front": Source(kind="url", url="http://x"), "back": Source(kind="url", url="http://x")},
        models=("rmbg",),
        extraction={} if front is None else {"front": front},
    )


@pytest.mark.parametrize(
    ("opinion", "reason"),
    [(AGREED, "It differs."), (DISPUTED, "The models disagree. It differs."), (None, "It differs.")],
)
def test_a_redrawn_design_is_to_be_looked_at_whatever_the_models_say(
    opinion: dict[str, Any] | None, reason: str
) -> None:
    report = side_reports(job(REDRAWN), {"front": opinion, "back": AGREED})
    assert (report["front"]["needs_review"], report["front"]["review_reason"]) == (True, reason)
    assert report["front"]["extraction"] == REDRAWN.model_dump(mode="json")
    assert report["back"] == AGREED


def test_an_original_that_was_used_because_extraction_failed_is_too() -> None:
    failed = ExtractionReport(status="failed", reason="extraction_empty", warning="The original was used.")
    assert side_reports(job(failed), {"front": AGREED})["front"]["review_reason"] == "The original was used."


@pytest.mark.parametrize("status", ["skipped", "extracted"])
def test_what_went_well_adds_no_reason(status: Any) -> None:
    good = ExtractionReport(status=status, reason="photo", redrawn=False)
    report = side_reports(job(good), {"front": AGREED, "back": None})
    assert report == {"front": AGREED | {"extraction": good.model_dump(mode="json")}}


def test_a_report_is_what_the_openapi_document_says() -> None:
    assert {"needs_review", "review_reason", "extraction"} <= set(SideReport.model_json_schema()["properties"])
    assert "differs from the original" in SideReport.model_json_schema()["properties"]["needs_review"]["description"]
