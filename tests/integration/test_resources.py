"""What runs out: the disk, and Redis' memory. Real ones, made small; the real API and the real worker process."""

import io
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import requests
from kombu.connection import Connection
from PIL import Image

from shared.jobs import Job, JobStatus
from shared.settings import load_settings
from tests.flaky_server import Answer, FlakyServer
from tests.hostile.stack import Stack
from tests.processes import wait_for
from tests.redis_server import RedisServer
from worker.consumer import TolerantTransport

DISK_BYTES = 24_000_000


def noise(seed: int, side: int = 500) -> bytes:
    """A PNG that no encoder makes small: 0.75 MB here, 1 MB as a cutout."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"this machine does not let root mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def redis_of_our_own() -> Iterator[RedisServer]:
    """A server whose limit a test may change."""
    with RedisServer() as server:
        yield server


class Held:
    """A stack whose models can be held, and what a client does with it."""

    def __init__(self, stack: Stack, gate: Path) -> None:
        self.stack, self.gate = stack, gate

    def hold(self, model: str) -> None:
        (self.gate / f"hold-{model}").touch()

    def release(self, model: str) -> None:
        (self.gate / f"hold-{model}").unlink()

    def send(self, seed: int, *sides: str, **options: Any) -> requests.Response:
        files = {side: (f"{side}.png", noise(seed + number)) for number, side in enumerate(sides)}
        return self.stack.post(data={"id": "1"}, files=files, **options)

    def begin(self, seed: int, *sides: str) -> str:
        """A job that is not waited for; its id."""
        reply = self.send(seed, *sides, headers={"Prefer": "respond-async"})
        assert reply.status_code == 202, reply.text
        return str(reply.json()["job_id"])

    def begin_held(self, seed: int) -> str:
        """A job whose first cell is on the device until `rmbg` is released."""
        self.hold("rmbg")
        job_id = self.begin(seed, "front")
        wait_for("a forward pass", (self.gate / "entered-rmbg").exists)
        wait_for("all cells to be sent", lambda: self.stack.store.get_mark(job_id, "canvas") == "submitted")
        return job_id

    def end(self, job_id: str) -> Job:
        job = self.stack.store.wait_final(job_id, 60)
        assert job.is_final, self.stack.logs[-6000:]
        return job


@pytest.fixture
def start(tmp_path: Path, redis_of_our_own: RedisServer) -> Iterator[Any]:
    stacks: list[Stack] = []

    def start_on(outputs: Path, **environment: str) -> Held:
        settings = load_settings(redis_url=redis_of_our_own.url, outputs_dir=outputs)
        gate = tmp_path / "gate"
        gate.mkdir()
        stack = Stack(settings, tmp_path, TINY_GATE=str(gate), RESULT_CACHE_TTL_S="0", **environment)
        stacks.append(stack.__enter__())
        return Held(stack, gate)

    yield start_on
    for stack in stacks:
        stack.__exit__(None, None, None)


def fill(folder: Path) -> Path:
    """Take all the room there is; the file that does."""
    ballast = folder / "ballast"
    filled = subprocess.run(
        ["dd", "if=/dev/zero", f"of={ballast}", "bs=4096"], capture_output=True, text=True, check=False
    )
    assert "No space left" in filled.stderr
    return ballast


def codes(job: Job) -> dict[str, str]:
    return {name: str(cell.error["code"]) if cell.error else "" for name, cell in job.cells.items()}


def test_a_full_disk_costs_the_cells_that_cannot_be_written_and_room_heals_everything(start: Any, disk: Path) -> None:
    """Given a job half done, when the disk fills up, then only its other half fails; with room again all succeeds."""
    held = start(disk / "outputs", TMPDIR=str(disk))
    outputs = disk / "outputs"
    (held.gate / "break-birefnet").touch()
    first = held.send(1, "front", "back").json()
    assert first["status"] == "partial"
    (held.gate / "break-birefnet").unlink()
    (held.gate / "entered-birefnet").unlink()
    # A retry has its good cells from the start, so what is done and what is not does not depend on who was faster.
    held.hold("birefnet")
    later = {"wait": "false"}
    job_id = requests.post(f"{held.stack.url}/jobs/{first['job_id']}/retry", params=later, timeout=60).json()["job_id"]
    rmbg = ("front_rmbg", "back_rmbg")
    wait_for("the other half", (held.gate / "entered-birefnet").exists)
    ballast = fill(disk)

    # The API: an upload on its way in (1.5 MB goes through TMPDIR), a small one, a picture in JSON.
    for reply in (
        held.send(20, "front", "back"),
        held.stack.post(data={"id": "1"}, files={"front": ("a", b"x" * 9000)}),
    ):
        assert (reply.status_code, reply.json()["code"]) == (500, "output_not_written"), reply.text
        assert "disk is full" in reply.json()["detail"]

    held.release("birefnet")
    job = held.end(job_id)
    assert job.status == JobStatus.PARTIAL
    assert codes(job) == {
        "front_rmbg": "",
        "back_rmbg": "",
        "front_birefnet": "output_not_written",
        "back_birefnet": "output_not_written",
    }
    assert "disk is full" in str((job.cells["back_birefnet"].error or {})["detail"])
    names = sorted(path.name for path in outputs.iterdir() if path.is_file() and first["job_id"] not in path.name)
    assert names == sorted(str(job.cells[name].url).rpartition("/")[2] for name in rmbg), "no half files, none too many"
    for name in rmbg:
        with Image.open(outputs / str(job.cells[name].url).rpartition("/")[2]) as image:
            image.load()

    ballast.unlink()
    again = requests.post(f"{held.stack.url}/jobs/{job_id}/retry", timeout=60).json()
    assert again["status"] == "succeeded"
    assert {name: cell["cached"] for name, cell in again["cells"].items() if name in rmbg} == dict.fromkeys(rmbg, True)
    for done in (first["job_id"], job_id, again["job_id"]):
        assert requests.delete(f"{held.stack.url}/jobs/{done}", timeout=10).status_code == 204
    assert held.send(40, "front").json()["status"] == "succeeded"


def test_a_disk_that_fills_up_in_the_middle_of_a_step_leaves_nothing_of_it(start: Any, disk: Path) -> None:
    """Given a job that is taken, then its fetched picture does not fit; nor does a print whose cutout still did.

    An upload is on the disk already, and is not written again.
    """
    held = start(disk / "outputs", TMPDIR=str(disk), ALLOW_PRIVATE_SOURCES="127.0.0.1")
    held.hold("rmbg")
    options = '{"models": ["rmbg"], "print": {"canvas": "700x700"}}'
    job_id = held.stack.post(
        data={"id": "1", "options": options}, files={"front": noise(60)}, headers={"Prefer": "respond-async"}
    ).json()["job_id"]
    wait_for("a forward pass", (held.gate / "entered-rmbg").exists)
    ballast = fill(disk)
    os.truncate(ballast, ballast.stat().st_size - 400_000)  # half a picture
    with FlakyServer() as remote:
        remote.plan("GET", "/61.png", Answer(body=noise(61)))
        reply = held.stack.post(
            json={"id": 1, "output": {"front": f"{remote.url}/61.png"}, "options": {"models": ["birefnet"]}}
        )
    body = reply.json()
    assert (reply.status_code, body["code"]) == (500, "output_not_written"), body
    assert "front.prepared could not be written: the disk is full" in body["detail"]
    assert not list((disk / "outputs").rglob("*.part"))
    requests.delete(f"{held.stack.url}/jobs/{body['job_id']}", timeout=10)
    os.truncate(ballast, ballast.stat().st_size - 800_000)  # one picture, not two
    held.release("rmbg")
    job = held.end(job_id)
    assert codes(job) == {"front_rmbg": "output_not_written"}
    assert "rmbg_print.png could not be written" in str((job.cells["front_rmbg"].error or {})["detail"])
    wait_for("its cutout to go too", lambda: not list((disk / "outputs").glob("design_*")))


def test_a_redis_at_its_memory_limit_refuses_new_jobs_and_the_running_ones_end_when_there_is_room(
    start: Any, tmp_path: Path, redis_of_our_own: RedisServer
) -> None:
    held = start(tmp_path / "outputs")
    running = held.begin_held(80)
    with redis.Redis(port=redis_of_our_own.port) as server:
        server.config_set("maxmemory-policy", "noeviction")
        server.config_set("maxmemory", 1_000_000)  # it holds more already
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            server.set("x", "y")
        time.sleep(1.1)  # a look at Redis' memory is good for a second
        replies = [held.send(90 + n, "front", headers={"Idempotency-Key": f"k{n}"} if n else {}) for n in range(2)]
        replies.append(requests.post(f"{held.stack.url}/jobs/{running}/cancel", timeout=10))
        for reply in replies:
            assert (reply.status_code, reply.json()["code"]) == (503, "redis_unavailable"), reply.text
            assert "memory limit" in reply.json()["detail"]
            assert int(reply.headers["Retry-After"]) > 0
        assert requests.get(f"{held.stack.url}/jobs/{running}", timeout=10).json()["status"] == "processing"
        assert requests.get(f"{held.stack.url}/health", timeout=10).status_code in (200, 503)

        held.release("rmbg")
        wait_for("the worker to notice", lambda: "redis_away" in held.stack.worker.log, held.stack.worker)
        assert held.stack.store.get(running).status == JobStatus.PROCESSING
        server.config_set("maxmemory", 0)
        assert held.end(running).status == JobStatus.SUCCEEDED
        # The last look at the memory, good for a second, may be younger than the room there is.
        wait_for("the next look", lambda: held.send(95, "front").json()["status"] == "succeeded")
        assert server.dbsize() < 60, "what was refused has left nothing"
    assert len(list((tmp_path / "outputs").glob("design_*"))) == 4


def test_jobs_are_refused_while_running_ones_still_have_room(
    start: Any, tmp_path: Path, redis_of_our_own: RedisServer
) -> None:
    """Given a Redis that is 95 % full, then no job is accepted, and those that run end without waiting."""
    held = start(tmp_path / "outputs")
    running = held.begin_held(100)
    with redis.Redis(port=redis_of_our_own.port) as server:
        later = {"Prefer": "respond-async"}
        # 100 MB, so that what is accepted in the second before the refusal does not use up the last twentieth; in small
        # pieces, or the buffer of the request would count as well.
        for number in range(1000):
            server.rpush("ballast", bytes(100_000 + number))
        server.config_set("maxmemory", int(server.info("memory")["used_memory"] / 0.95))
        wait_for("the refusal", lambda: held.send(110, "front", headers=later).status_code == 503, timeout_s=10)
        held.release("rmbg")
        assert held.end(running).status == JobStatus.SUCCEEDED
        assert "redis_away" not in held.stack.worker.log
        server.delete("ballast")
        wait_for("room", lambda: held.send(120, "front").status_code == 200, timeout_s=10)


def test_a_worker_that_starts_while_redis_is_full_says_so_ends_and_the_next_one_takes_over(
    start: Any, tmp_path: Path, redis_of_our_own: RedisServer
) -> None:
    """Given a worker killed in mid-job and a full Redis, where what it held can't be given back."""
    held = start(tmp_path / "outputs")
    running = held.begin_held(130)
    held.stack.worker.kill()
    held.release("rmbg")
    with redis.Redis(port=redis_of_our_own.port) as server:
        server.config_set("maxmemory-policy", "noeviction")
        server.config_set("maxmemory", 1_000_000)  # it holds more already
        held.stack.worker = held.stack.start_worker()
        assert held.stack.worker.popen.wait(60) != 0
        assert "Redis is at its memory limit (maxmemory)" in held.stack.worker.log.splitlines()[-1]
        server.config_set("maxmemory", 0)
    held.stack.worker = held.stack.start_worker()
    assert held.end(running).status == JobStatus.SUCCEEDED


def test_a_message_that_is_taken_while_redis_is_full_is_not_lost(redis_of_our_own: RedisServer) -> None:
    """Given a message in a queue, when Redis takes no write, then whoever takes the message waits, and gets it."""
    with (
        redis.Redis(port=redis_of_our_own.port) as server,
        Connection(redis_of_our_own.url, transport=TolerantTransport) as connection,  # type: ignore[no-untyped-call]
        ThreadPoolExecutor(1) as pool,
    ):
        queue = connection.SimpleQueue("jobs")
        queue.put({"job_id": "7"})
        server.config_set("maxmemory", 1)
        taken = pool.submit(queue.get, timeout=30)
        wait_for("it to be taken", lambda: server.llen("jobs") == 0 or taken.done())
        assert wait([taken], timeout=0.2).not_done, "it has to wait for Redis"
        server.config_set("maxmemory", 0)
        message = taken.result(20)
        assert message.payload == {"job_id": "7"}
        assert server.hlen("unacked") == 1
        message.ack()
        queue.close()
