"""The downloader in a network namespace where every forbidden address answers: nothing may reach one."""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.hostile.attacks import FORBIDDEN_4, FORBIDDEN_6, LINK_LOCAL_6, PUBLIC, PUBLIC_6, Attack, attacks
from tests.processes import ROOT

_FORBIDDEN = {*FORBIDDEN_4, *FORBIDDEN_6, LINK_LOCAL_6}


def _in_a_namespace(*arguments: str) -> subprocess.CompletedProcess[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--net", "--mount", sys.executable, "-m", "tests.hostile.internet", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What became of every attack; skipped, with the kernel's reason, where namespaces are not allowed."""
    for tool in ("unshare", "ip"):
        if shutil.which(tool) is None:
            if os.environ.get("CI"):
                pytest.fail(f"no {tool} in CI; .ci/run installs it")
            pytest.skip(f"{tool} is not here (packages util-linux, iproute2)")
    probe = _in_a_namespace("--probe")
    if probe.returncode:
        pytest.skip(f"network namespaces are not allowed here: {probe.stderr.strip().splitlines()[-1]}")
    done = _in_a_namespace()
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("attack", attacks(), ids=lambda attack: attack.name)
def test_each_attack_has_its_code(report: dict[str, Any], attack: Attack) -> None:
    outcome = report["outcomes"][attack.name]
    assert outcome["code"] == attack.code, outcome["detail"]
    assert outcome["seconds"] < 8  # a download has 3 s here, and the resolver one more


def test_nothing_reaches_a_forbidden_address(report: dict[str, Any]) -> None:
    assert {address: count for address, count in report["reached"].items() if address in _FORBIDDEN} == {}
    assert set(report["reached"]) == {PUBLIC, PUBLIC_6}
    # The recorder did listen on each of them: it answers when it is knocked at afterwards.
    assert set(report["answering"]) == _FORBIDDEN


def test_a_name_is_looked_up_once_for_each_connection(report: dict[str, Any]) -> None:
    assert report["asked"]["rebinding.test 1"] == 1
    assert report["asked"]["rebinding-at-once.test 1"] == 3


def test_no_request_carries_what_an_earlier_answer_has_set(report: dict[str, Any]) -> None:
    heads = [request.lower() for request in report["requests"] if request]
    assert len(heads) > 20
    for word in ("cookie:", "authorization:", "referer:", "proxy-"):
        assert [head for head in heads if f"\n{word}" in head] == []
