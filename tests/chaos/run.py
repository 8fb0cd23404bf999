"""A random run: jobs all the time, and every few seconds something is killed (`make chaos`).

`python -m tests.chaos.run --help` shows what can be chosen.

The same seed makes the same faults in the same order; when exactly each one hits depends on the machine.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from shared.jobs import JobStatus
from tests.chaos.clients import Clients
from tests.chaos.invariant import check_invariant
from tests.chaos.stack import Accepted, Stack
from tests.processes import Process

WORKERS = ("worker-1", "worker-2")
#: Fault -> how often it is chosen, beside the others.
FAULTS = {
    "worker killed": 6,
    "worker told to stop": 3,
    "redis killed": 4,
    "api killed": 4,
    "api told to stop": 3,
    "everything killed": 1,
}


@dataclass
class Report:
    """What a run came to; every number was counted."""

    seed: int
    seconds: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    jobs_accepted: int = 0
    jobs_lost: int = 0
    duplicates_seen_by_a_client: int = 0
    messages_given_back: int = 0
    jobs_planned_again: int = 0
    poisonous_jobs: int = 0
    poison_deaths: int = 0
    given_up_without_being_poisonous: int = 0
    workers_ended_by_themselves: int = 0

    def __str__(self) -> str:
        rows = {name.replace("_", " "): value for name, value in vars(self).items()}
        rows |= {name: json.dumps(value) for name, value in rows.items() if isinstance(value, dict)}
        return "\n".join(f"{name:34} {value}" for name, value in rows.items())


class Chaos:
    """Kills parts of a stack and starts them again, as a supervisor would, a little later."""

    def __init__(self, stack: Stack, seed: int, pause_s: tuple[float, float]) -> None:
        self.faults: Counter[str] = Counter()
        self.poison_deaths = self.own_ends = 0
        self._stack, self._choice, self._pause_s = stack, random.Random(seed), pause_s

    def run(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._wait(self._choice.uniform(*self._pause_s))
            self._hurt(self._choice.choices(list(FAULTS), list(FAULTS.values()))[0])
        self.supervise()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.supervise()
            time.sleep(0.05)

    def supervise(self) -> None:
        """Start what has died; only a poisonous picture, or a part that gave up waiting for another, ends unasked."""
        for name in WORKERS:
            if self._stack.workers[name].popen.poll() is not None:
                is_killed = self._stack.workers[name].popen.returncode == -signal.SIGKILL
                self.poison_deaths += is_killed
                self.own_ends += not is_killed
                self._stack.start_worker(name)
        assert self._stack.api is not None
        if self._stack.api.popen.poll() is not None:
            self._stack.start_api()

    def _hurt(self, fault: str) -> None:
        self.faults[fault] += 1
        stack, down_s = self._stack, self._choice.uniform(0, 1.5)
        name = self._choice.choice(WORKERS)
        assert stack.api is not None
        if fault == "everything killed":
            stack.kill_everything()
        elif fault == "redis killed":
            stack.redis.stop()
        elif fault == "worker killed":
            stack.workers[name].kill()
        elif fault == "api killed":
            stack.api.kill()
        else:
            _stop(stack.workers[name] if fault == "worker told to stop" else stack.api)
        time.sleep(down_s)
        if not stack.redis.is_running:
            stack.redis.start()
        if stack.api.popen.poll() is not None:
            stack.start_api()
        for worker in WORKERS:
            if stack.workers[worker].popen.poll() is not None:
                stack.start_worker(worker)


def _count_open(stack: Stack, accepted: list[Accepted]) -> int:
    return sum(not stack.store.get(job.job_id).is_final for job in accepted)


def _stop(process: Process) -> None:
    """TERM, and KILL when its grace and more are over."""
    process.popen.terminate()
    try:
        process.popen.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()


def run(
    folder: Path,
    *,
    seed: int,
    seconds: float,
    clients: int = 4,
    poison_share: float = 0.0,
    pause_s: tuple[float, float] = (1.0, 6.0),
    quiet_s: float = 180.0,
) -> Report:
    """Run for so long, wait for quiet, check every job.

    Args:
        folder: an empty one, for logs and outputs.
        poison_share: share of jobs whose picture kills its worker.
        pause_s: from one fault to the next (from, to).
        quiet_s: how long the jobs may take to end once nothing is killed any more.
    Raises:
        AssertionError: a job broke the invariant; the message names each and has the logs.
    """
    report, began = Report(seed), time.monotonic()
    with Stack(folder, CHAOS_PASS_S="0.05", SHUTDOWN_GRACE_S="10") as stack:
        stack.start_api()
        for name in WORKERS:
            stack.start_worker(name)
        for name in WORKERS:
            stack.wait_ready(name)
        chaos = Chaos(stack, seed, pause_s)
        with Clients(stack, clients, seed, poison_share=poison_share) as asked:
            chaos.run(seconds)
        report.faults, report.answers = chaos.faults, asked.answers
        report.jobs_accepted, report.duplicates_seen_by_a_client = len(asked.accepted), asked.duplicates
        stop_s = time.monotonic() + quiet_s
        while time.monotonic() < stop_s and _count_open(stack, asked.accepted):
            chaos.supervise()  # poisonous jobs go on killing until they are given up
            time.sleep(0.2)
        report.jobs_lost = _count_open(stack, asked.accepted)
        report.ended = check_invariant(stack, asked.accepted, quiet_s)
        failed = {job.job_id for job in asked.accepted if stack.store.status(job.job_id) == JobStatus.FAILED}
        report.poisonous_jobs = sum(job.is_poisonous for job in asked.accepted)
        report.given_up_without_being_poisonous = sum(
            job.job_id in failed for job in asked.accepted if not job.is_poisonous
        )
        report.poison_deaths, report.workers_ended_by_themselves = chaos.poison_deaths, chaos.own_ends
        report.messages_given_back = sum(entry["count"] for entry in stack.logged("messages_given_back"))
        report.jobs_planned_again = len(stack.logged("job_rescued"))
        report.seconds = round(time.monotonic() - began, 1)
    assert report.duplicates_seen_by_a_client == 0, report
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--poison-share", type=float, default=0.002)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        try:
            report = run(
                Path(folder),
                seed=arguments.seed,
                seconds=60 * arguments.minutes,
                clients=arguments.clients,
                poison_share=arguments.poison_share,
            )
        except AssertionError as exc:
            print(f"The invariant does not hold:\n{exc}", file=sys.stderr)
            return 1
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
