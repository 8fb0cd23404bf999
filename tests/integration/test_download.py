"""`python -m download` as a user runs it: a real process against a hub on loopback."""

import fcntl
import hashlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from download.cache import size_text
from tests.hub import LIBRARY_CHUNK_BYTES, Hub, Repository, checkpoint_bytes

ROOT = Path(__file__).parents[2]
RMBG, BIREFNET = "briaai/RMBG-2.0", "ZhengPeng7/BiRefNet"
COMMITS = {RMBG: "a" * 40, BIREFNET: "b" * 40}
TOKEN = "hf_letmein"
BIG = checkpoint_bytes(3 * LIBRARY_CHUNK_BYTES)


@pytest.fixture
def hub() -> Iterator[Hub]:
    repositories = {
        RMBG: Repository(COMMITS[RMBG], {"model.safetensors": checkpoint_bytes(seed=1)}, token=TOKEN),
        BIREFNET: Repository(COMMITS[BIREFNET], {"model.safetensors": checkpoint_bytes(seed=2)}),
    }
    with Hub(repositories) as hub:
        yield hub


def environment(hub: Hub | None, models_dir: Path, **changes: str) -> dict[str, str]:
    """A bare environment: neither a token nor a proxy of the machine gets in."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(models_dir.parent / "home"),
        "NO_PROXY": "*",
        "PYTHONUNBUFFERED": "1",
        "MODELS_DIR": str(models_dir),
        "HF_ENDPOINT": hub.endpoint if hub else "http://127.0.0.1:9",
        "HF_TOKEN": TOKEN,
        "RMBG_REVISION": COMMITS[RMBG],
        "BIREFNET_REVISION": COMMITS[BIREFNET],
        "MODEL_PROFILE": "full",
        **changes,
    }


def download(hub: Hub | None, models_dir: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "download", *arguments],
        cwd=ROOT,
        env=environment(hub, models_dir, **changes),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def checkpoint(models_dir: Path, repository: str) -> Path:
    return models_dir / repository.split("/")[1] / "model.safetensors"


def content(hub: Hub, repository: str) -> bytes:
    return hub.repositories[repository].files["model.safetensors"]


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


def test_a_fresh_download_puts_both_models_in_place_with_a_record(hub: Hub, models_dir: Path) -> None:
    done = download(hub, models_dir)
    assert done.returncode == 0, done.stderr
    for repository in (RMBG, BIREFNET):
        assert checkpoint(models_dir, repository).read_bytes() == content(hub, repository)
        record = json.loads(checkpoint(models_dir, repository).with_name("manifest.json").read_text())
        assert record["repository"] == repository
        assert record["commit"] == COMMITS[repository]
        assert record["files"]["model.safetensors"]["size_bytes"] == len(content(hub, repository))
        assert not list(models_dir.rglob("*.part"))


def test_the_licence_of_rmbg_is_told_before_its_download(hub: Hub, models_dir: Path) -> None:
    lines = download(hub, models_dir).stdout.splitlines()
    licence = next(i for i, line in enumerate(lines) if "CC BY-NC 4.0" in line and "agreement with Bria" in line)
    assert licence < next(i for i, line in enumerate(lines) if "downloaded and verified" in line)


def test_a_terminal_gets_a_progress_bar(hub: Hub, models_dir: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    with os.fdopen(ours, "rb", buffering=0) as screen:
        subprocess.run(
            [sys.executable, "-m", "download"],
            cwd=ROOT,
            env=environment(hub, models_dir, MODELS="birefnet"),
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            timeout=120,
            check=True,
        )
        os.close(theirs)
        assert b"BiRefNet/model.safetensors: 100%" in screen.read(65536)


def test_the_hub_sees_one_question_and_one_download_per_file_and_nothing_else(hub: Hub, models_dir: Path) -> None:
    assert download(hub, models_dir, MODELS="birefnet").returncode == 0
    assert [seen.method for seen in hub.requests] == ["HEAD", "GET"]


def test_a_second_run_asks_the_hub_nothing_and_says_so(hub: Hub, models_dir: Path) -> None:
    assert download(hub, models_dir).returncode == 0
    hub.requests.clear()
    done = download(hub, models_dir)
    assert done.returncode == 0
    assert done.stdout.count("already complete") == 2
    assert not hub.requests


def test_the_token_goes_to_the_hub_for_the_gated_model_and_nowhere_else(hub: Hub, models_dir: Path) -> None:
    done = download(hub, models_dir)
    sent = {
        (seen.method, seen.host.split(":")[0], seen.path.split("/")[1]) for seen in hub.requests if seen.authorization
    }
    assert sent == {("HEAD", "127.0.0.1", "briaai")}
    assert TOKEN not in done.stdout + done.stderr


def test_a_connection_cut_in_the_middle_is_continued_by_byte_position(hub: Hub, models_dir: Path) -> None:
    hub.repositories[BIREFNET].files["model.safetensors"] = BIG
    hub.faults.cut_after = LIBRARY_CHUNK_BYTES + 1000
    done = download(hub, models_dir, MODELS="birefnet")
    assert done.returncode == 0, done.stderr
    assert [seen.range for seen in hub.downloads] == [None, f"bytes={LIBRARY_CHUNK_BYTES}-"]
    assert checkpoint(models_dir, BIREFNET).read_bytes() == BIG


def test_a_killed_download_is_continued_by_the_next_run(hub: Hub, models_dir: Path) -> None:
    hub.repositories[BIREFNET].files["model.safetensors"] = BIG
    hub.faults.hold_after = 2 * LIBRARY_CHUNK_BYTES + 1000
    # Given a download that is killed between the server's last byte and its next one
    killed = subprocess.Popen(
        [sys.executable, "-m", "download"],
        cwd=ROOT,
        env=environment(hub, models_dir, MODELS="birefnet"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert hub.faults.held.wait(60)
    part = _wait_for_part(models_dir, 2 * LIBRARY_CHUNK_BYTES)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    hub.faults.release.set()
    assert not checkpoint(models_dir, BIREFNET).exists()
    # When it is run again
    hub.faults.hold_after = None
    done = download(hub, models_dir, MODELS="birefnet")
    # Then it asks only for what is missing
    assert done.returncode == 0, done.stderr
    assert "continuing after 21.0 MB" in done.stdout
    assert [seen.range for seen in hub.downloads] == [None, f"bytes={2 * LIBRARY_CHUNK_BYTES}-"]
    assert checkpoint(models_dir, BIREFNET).read_bytes() == BIG
    assert not part.exists()


def _wait_for_part(models_dir: Path, size_bytes: int) -> Path:
    """The part file, once it has `size_bytes`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for part in models_dir.rglob("*.part"):
            if part.stat().st_size >= size_bytes:
                return part
        os.sched_yield()
    raise AssertionError(f"no part file of {size_bytes} bytes in {models_dir}")


def test_corrupt_content_is_detected_and_never_put_in_place(hub: Hub, models_dir: Path) -> None:
    right = content(hub, BIREFNET)
    hub.faults.corrupt = right[:-1] + bytes([right[-1] ^ 1])
    done = download(hub, models_dir, MODELS="birefnet")
    assert done.returncode == 1
    assert "arrived corrupt (SHA-256 is" in done.stderr
    assert not checkpoint(models_dir, BIREFNET).exists()
    assert not list(models_dir.rglob("*.part"))
    hub.faults.corrupt = None
    assert download(hub, models_dir, MODELS="birefnet").returncode == 0


def test_what_is_no_checkpoint_is_refused_even_with_the_right_hash(hub: Hub, models_dir: Path) -> None:
    hub.repositories[BIREFNET].files["model.safetensors"] = b"<html>not weights</html>"
    done = download(hub, models_dir, MODELS="birefnet")
    assert done.returncode == 1
    assert "not a safetensors file" in done.stderr
    assert not checkpoint(models_dir, BIREFNET).exists()


@pytest.mark.parametrize(
    ("token", "status", "state"),
    [("", 401, "not set"), ("hf_stranger", 403, "set, but not accepted"), ("rubbish", 401, "set, but not accepted")],
)
def test_a_refused_token_gets_advice_and_the_other_model_still_comes(
    hub: Hub, models_dir: Path, token: str, status: int, state: str
) -> None:
    done = download(hub, models_dir, HF_TOKEN=token)
    assert done.returncode == 1
    assert f"({status})" in done.stderr
    assert "Accept the licence at https://huggingface.co/briaai/RMBG-2.0" in done.stderr
    assert f"check HF_TOKEN in .env (it is {state})" in done.stderr
    assert not checkpoint(models_dir, RMBG).exists()
    assert checkpoint(models_dir, BIREFNET).exists()


def test_birefnet_alone_needs_no_token(hub: Hub, models_dir: Path) -> None:
    done = download(hub, models_dir, MODELS="birefnet", HF_TOKEN="")
    assert done.returncode == 0, done.stderr
    assert not (models_dir / "RMBG-2.0").exists()
    assert not any("briaai" in seen.path for seen in hub.requests)


def test_an_unreachable_hub_is_one_sentence(models_dir: Path) -> None:
    with socket.socket() as closed:  # bound but not listening: this port refuses connections and nobody else gets it
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = download(None, models_dir, HF_ENDPOINT=address)
    assert done.returncode == 1
    assert f"Cannot reach the model hub at {address}" in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Not complete: rmbg, birefnet (not tried)" in done.stderr


def test_the_hubs_offline_switch_is_told_as_unreachable(hub: Hub, models_dir: Path) -> None:
    done = download(hub, models_dir, MODELS="birefnet", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "Cannot reach the model hub" in done.stderr
    assert not hub.requests


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"BIREFNET_REVISION": "c" * 40}, f"has no revision {'c' * 40}; correct BIREFNET_REVISION"),
        ({"BIREFNET_REPO": "no--body/nothing"}, "correct BIREFNET_REPO or HF_ENDPOINT"),
        ({"BIREFNET_REPO": "nobody/nothing"}, "has no public repository nobody/nothing (401); correct BIREFNET_REPO"),
    ],
)
def test_a_wrong_name_says_which_setting_to_correct(
    hub: Hub, models_dir: Path, changes: dict[str, str], sentence: str
) -> None:
    done = download(hub, models_dir, MODELS="birefnet", **changes)
    assert done.returncode == 1
    assert sentence in done.stderr


def test_a_repository_without_the_file_says_so(hub: Hub, models_dir: Path) -> None:
    hub.repositories[BIREFNET].files.clear()
    done = download(hub, models_dir, MODELS="birefnet")
    assert done.returncode == 1
    assert "has no model.safetensors at" in done.stderr


def test_a_hub_in_trouble_is_told_with_its_status(hub: Hub, models_dir: Path) -> None:
    hub.faults.status = 503
    done = download(hub, models_dir, MODELS="birefnet")
    assert done.returncode == 1
    assert "answered 503" in done.stderr


def test_an_expired_storage_address_is_not_taken_for_a_wrong_token(hub: Hub, models_dir: Path) -> None:
    hub.faults.storage_status = 403
    done = download(hub, models_dir, MODELS="rmbg")
    assert done.returncode == 1
    assert "storage answered 403" in done.stderr
    assert "HF_TOKEN" not in done.stderr


def test_a_file_larger_than_the_disk_is_refused_before_its_download(hub: Hub, models_dir: Path) -> None:
    hub.faults.announced_size = 10**18
    done = download(hub, models_dir, MODELS="birefnet")
    assert done.returncode == 1
    assert "Disk full" in done.stderr
    assert not hub.downloads


def test_a_disk_that_fills_up_on_the_way_is_one_sentence(hub: Hub, models_dir: Path) -> None:
    sha256 = hashlib.sha256(content(hub, BIREFNET)).hexdigest()
    folder = models_dir / "BiRefNet"
    folder.mkdir(parents=True)
    (folder / f".model.safetensors.{sha256[:12]}.part").symlink_to("/dev/full")
    done = download(hub, models_dir, MODELS="birefnet")
    assert done.returncode == 1
    assert f"Disk full while writing to {folder}" in done.stderr
    assert not checkpoint(models_dir, BIREFNET).exists()


def test_a_branch_is_pinned_to_the_commit_of_its_first_download(hub: Hub, models_dir: Path) -> None:
    first = content(hub, BIREFNET)
    assert download(hub, models_dir, MODELS="birefnet", BIREFNET_REVISION="main").returncode == 0
    # The branch moves on; the cache does not, until somebody asks for another revision.
    hub.repositories[BIREFNET] = Repository("d" * 40, {"model.safetensors": checkpoint_bytes(seed=9)})
    done = download(hub, models_dir, MODELS="birefnet", BIREFNET_REVISION="main")
    assert "already complete" in done.stdout
    assert checkpoint(models_dir, BIREFNET).read_bytes() == first
    checked = download(hub, models_dir, "--check", MODELS="birefnet", BIREFNET_REVISION="d" * 40)
    assert checked.returncode == 1
    assert "outdated: BIREFNET_REVISION asks for dddddddddddd" in checked.stdout
    assert download(hub, models_dir, MODELS="birefnet", BIREFNET_REVISION="d" * 40).returncode == 0
    assert checkpoint(models_dir, BIREFNET).read_bytes() == content(hub, BIREFNET)


def test_a_damaged_file_is_replaced_by_the_next_run(hub: Hub, models_dir: Path) -> None:
    assert download(hub, models_dir, MODELS="birefnet").returncode == 0
    checkpoint(models_dir, BIREFNET).write_bytes(b"damaged")
    assert download(hub, models_dir, MODELS="birefnet").returncode == 0
    assert checkpoint(models_dir, BIREFNET).read_bytes() == content(hub, BIREFNET)


def test_two_downloads_do_not_write_the_same_folder(hub: Hub, models_dir: Path) -> None:
    (models_dir / "BiRefNet").mkdir(parents=True)
    with (models_dir / "BiRefNet" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = download(hub, models_dir, MODELS="birefnet")
    assert done.returncode == 1
    assert "Another download is writing" in done.stderr


def test_an_unknown_model_is_a_wrong_setting(hub: Hub, models_dir: Path) -> None:
    for arguments in ((), ("--check",)):
        done = download(hub, models_dir, *arguments, MODELS="rmbg,nonesuch")
        assert done.returncode == 2
        assert "MODELS names nonesuch" in done.stderr
    assert not hub.requests


def test_a_wrong_setting_ends_with_status_2_and_its_name(models_dir: Path) -> None:
    done = download(None, models_dir, MODEL_PROFILE="huge")
    assert done.returncode == 2
    assert "MODEL_PROFILE" in done.stderr


def test_the_check_of_a_complete_cache_shows_every_column_and_passes(hub: Hub, models_dir: Path) -> None:
    assert download(hub, models_dir).returncode == 0
    done = download(hub, models_dir, "--check", "--deep")
    assert done.returncode == 0, done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("rmbg", "birefnet"))]
    path = str(checkpoint(models_dir, BIREFNET))
    size = size_text(len(content(hub, BIREFNET))).split()
    assert ["birefnet", "full", path, *size, "b" * 12, "MIT", "ok"] in rows
    assert sum("CC BY-NC 4.0" in line for line in done.stdout.splitlines()) == 1
    assert f"in {models_dir}" in done.stdout
    assert "MODEL_PROFILE=full has everything it needs" in done.stdout


def test_the_check_of_an_empty_cache_fails_and_names_the_command(models_dir: Path) -> None:
    done = download(None, models_dir, "--check")
    assert done.returncode == 1
    assert done.stdout.count("missing") >= 4
    assert "Cache size: 0 B" in done.stdout
    assert "make download-models" in done.stdout


def test_the_check_sees_a_truncated_file(hub: Hub, models_dir: Path) -> None:
    assert download(hub, models_dir).returncode == 0
    size = checkpoint(models_dir, RMBG).stat().st_size
    os.truncate(checkpoint(models_dir, RMBG), size - 100)
    done = download(hub, models_dir, "--check")
    assert done.returncode == 1
    assert f"corrupt: {size - 100} bytes, expected {size}" in done.stdout


def test_only_a_deep_check_sees_a_flipped_bit(hub: Hub, models_dir: Path) -> None:
    assert download(hub, models_dir).returncode == 0
    path = checkpoint(models_dir, BIREFNET)
    right = path.read_bytes()
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    assert download(hub, models_dir, "--check").returncode == 0
    assert download(hub, models_dir, "--check", "--deep").returncode == 1
    # A deep download repairs what a deep check found.
    assert download(hub, models_dir, "--deep").returncode == 0
    assert path.read_bytes() == right


def test_starter_checkpoints_are_enough_for_auto_and_starter_but_not_for_full(models_dir: Path) -> None:
    (models_dir / "starter").mkdir(parents=True)
    for name in ("rmbg", "birefnet"):
        (models_dir / "starter" / f"{name}.safetensors").write_bytes(checkpoint_bytes())
    statuses = {
        profile: download(None, models_dir, "--check", MODEL_PROFILE=profile).returncode
        for profile in ("starter", "auto", "full")
    }
    assert statuses == {"starter": 0, "auto": 0, "full": 1}
