"""A short random run with a fixed seed; `make chaos` makes a long one."""

from pathlib import Path

from tests.chaos.run import run


def test_no_job_is_lost_in_a_random_run(tmp_path: Path) -> None:
    report = run(tmp_path, seed=6, seconds=12, clients=3, pause_s=(1.0, 3.0))
    print(report)
    assert report.jobs_lost == report.duplicates_seen_by_a_client == 0
    assert report.jobs_accepted >= 10
    assert report.faults.total() >= 3
