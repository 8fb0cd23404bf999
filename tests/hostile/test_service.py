"""The corpus through the whole service: each file as the front of a job whose back is a good picture."""

import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.settings import load_settings
from tests.hostile.building import Case, Right, noise, saved
from tests.hostile.corpus import corpus
from tests.hostile.stack import Stack
from tests.redis_server import RedisServer

#: Requests at the same time; more than the worker has threads, so that bad and good pictures meet in it.
CLIENTS = 12


@pytest.fixture(scope="module")
def stack(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("hostile")
    settings = load_settings(redis_url=redis_server.url, outputs_dir=folder / "outputs")
    with Stack(settings, folder, WORKER_THREADS="4") as stack:
        yield stack


def good_back(number: int) -> Image.Image:
    """A picture of which no other job has the size and the colours."""
    return noise(number, 20 + number % 40, 10 + number // 40)


def send(stack: Stack, number: int, case: Case) -> dict[str, Any]:
    """The body of the reply, with its status as `http_status`."""
    files = {"front": ("front.png", case.data), "back": ("back.png", saved(good_back(number), "PNG"))}
    reply = stack.post(data={"id": str(number), "options": '{"models": ["rmbg"]}'}, files=files)
    return {**reply.json(), "http_status": reply.status_code}


def mistake(stack: Stack, number: int, case: Case, reply: dict[str, Any]) -> str | None:
    """What is wrong about the answer to a job of this front and a good back, or None."""
    if case.data == b"":
        return None if reply["http_status"] == 422 else f"an empty file gave {reply}"
    if reply["http_status"] != 200:
        return f"{case.name} gave {reply['http_status']} {reply.get('code')}: {reply.get('detail')}"
    front, back = reply["cells"]["front_rmbg"], reply["cells"]["back_rmbg"]
    if front["status"] == "failed" and front["error"]["code"] not in ("source_not_an_image", "source_too_large"):
        return f"{case.name} ended in {front['error']}"
    if isinstance(case.outcome, str) and (front["status"] != "failed" or front["error"]["code"] != case.outcome):
        return f"{case.name} gave {front} instead of {case.outcome}"
    if isinstance(case.outcome, Right) and (front["width"], front["height"]) != case.outcome.size:
        return f"{case.name} gave {front} instead of {case.outcome.size}"
    if back["status"] != "succeeded":
        return f"beside {case.name} the good picture was lost: {back['error']}"
    return None if is_own(stack, number, back["url"]) else f"beside {case.name} the good picture is not its own"


def is_own(stack: Stack, number: int, url: str) -> bool:
    """True when a cutout has the colours of this job's back wherever it is solid."""
    original = np.asarray(good_back(number))
    cutout = np.asarray(Image.open(io.BytesIO(stack.get(url.removeprefix(stack.url)).content)))
    solid = cutout[..., 3] == 255 if cutout.shape == (*original.shape[:2], 4) else np.zeros(0, bool)
    return bool(solid.any()) and bool((cutout[..., :3][solid] == original[solid]).all())


@pytest.mark.slow
def test_no_file_costs_more_than_its_own_side(stack: Stack) -> None:
    """Given every file of the corpus beside a good picture, when all are sent, each good one comes back."""
    worker, api = stack.worker.popen.pid, stack.api.popen.pid
    with ThreadPoolExecutor(CLIENTS) as clients:
        replies = list(clients.map(lambda item: send(stack, *item), enumerate(corpus())))
        problems = clients.map(
            lambda item: mistake(stack, item[0], *item[1]), enumerate(zip(corpus(), replies, strict=True))
        )
        assert [problem for problem in problems if problem] == []
    # Alive, the same processes, and with nothing in their logs that they did not expect.
    assert (stack.worker.popen.poll(), stack.api.popen.poll()) == (None, None)
    assert (stack.worker.popen.pid, stack.api.popen.pid) == (worker, api)
    assert stack.get("/ready").status_code == 200
    assert "Traceback" not in stack.logs, stack.logs[-6000:]
    assert "internal_error" not in stack.logs
    codes = Counter(reply.get("status", reply.get("code")) for reply in replies)
    print(f"{len(replies)} jobs: {dict(codes)}")
