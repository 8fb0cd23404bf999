"""Bring a published model into the cache: ask the hub what the file is, download it, verify it, then rename it.

This uses the hub library's own parts (`get_hf_file_metadata`, `http_get`) rather than `hf_hub_download`. Since that
function writes to a file with a random name and removes it on any failure (huggingface_hub PR 4228), a download stopped
at 800 MB would begin again at 0. Ours writes to `.model.safetensors.<hash>.part`, which the next run continues with a
Range request. `flock` on the folder does what the random names did: two downloads never write one file.
"""

import errno
import fcntl
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx2  # the HTTP client of huggingface_hub; its connection errors come through the library as they are
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get

from download.cache import Record, checkpoint_fault, read_record, size_text, sync_to_disk, write_record
from download.manifest import FileDigest, PublishedModel
from shared.errors import FatalError
from shared.settings import Settings

#: Else the library first fetches a list of AI agents from the hub, to report the one it may run under, and keeps that
#: list in the home folder. This process only fetches what it was asked for.
constants.HF_HUB_DISABLE_TELEMETRY = True

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "run make download-models again; it goes on where it stopped"


class DownloadError(FatalError):
    """One model could not be brought into the cache; the message says why and what to do."""


class HubUnreachableError(DownloadError):
    """The hub did not answer at all, so there is no use in asking it for the next model."""


@dataclass(frozen=True)
class _Offer:
    """What the hub says about one file at one commit, and where it may be downloaded for a while."""

    commit: str
    digest: FileDigest
    location: str
    token: str | bool


def fetch(model: PublishedModel, settings: Settings, *, deep: bool = False, say: Callable[[str], None] = print) -> bool:
    """Make the files of one model complete in the cache.

    Args:
        deep: hash files that are already there instead of trusting their size and header.
        say: where a line for the user goes; a progress bar goes to stderr when that is a terminal.
    Returns:
        True when something was downloaded, False when everything was already there.
    Raises:
        DownloadError: the model is not complete; what has arrived so far is kept for the next run.
    """
    folder = model.folder(settings.models_dir)
    record = read_record(folder)
    if record is not None and not record.answers(model):
        record = None
    if record is not None and _is_complete(model, record, folder, deep):
        size = sum(digest.size_bytes for digest in record.files.values())
        say(f"{model.title}: already complete ({size_text(size)}, commit {record.commit[:7]}); nothing to do")
        return False
    say(f"{model.title}: licence {model.licence} ({model.licence_url}). {model.licence_note}")
    with _errors_explained(model, settings), _folder_locked(folder):
        # A recorded commit wins over the branch it came from: a repaired file belongs to the weights used so far.
        commit = record.commit if record is not None else model.revision
        files: dict[str, FileDigest] = {}
        downloaded = False
        for name in model.files:
            digest = model.pins.get(name)
            if digest is None or checkpoint_fault(folder / name, digest, deep=True) is not None:
                offer = _ask_hub(model, name, commit, settings)
                commit, digest = offer.commit, offer.digest
                if checkpoint_fault(folder / name, digest, deep=True) is not None:
                    _download(folder / name, offer, say)
                    downloaded = True
            files[name] = digest
        write_record(folder, _record(model, commit, files))
    verb = "downloaded and verified" if downloaded else "verified the files already there"
    say(f"{model.title}: {verb} (commit {commit[:7]}) in {folder}")
    return downloaded


def _is_complete(model: PublishedModel, record: Record, folder: Path, deep: bool) -> bool:
    return all(
        name in record.files and checkpoint_fault(folder / name, record.files[name], deep=deep) is None
        for name in model.files
    )


def _record(model: PublishedModel, commit: str, files: dict[str, FileDigest]) -> Record:
    return Record(
        model=model.name,
        repository=model.repository,
        requested=model.revision,
        commit=commit,
        licence=model.licence,
        downloaded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        files=files,
    )


def _ask_hub(model: PublishedModel, name: str, revision: str, settings: Settings) -> _Offer:
    """One HEAD request: resolves a branch to its commit and tells the file's size, hash and address."""
    # False, not None: None would let the library look for a token of its own in the environment or the home folder.
    token: str | bool = (settings.hf_token.get_secret_value() or False) if model.gated else False
    endpoint = settings.hf_endpoint.rstrip("/")
    url = hf_hub_url(model.repository, name, revision=revision, endpoint=endpoint)
    offered = get_hf_file_metadata(url, token=token, endpoint=endpoint)
    commit = offered.commit_hash or ""
    if not _COMMIT.fullmatch(commit):
        raise DownloadError(f"{endpoint} does not answer as a model hub (no commit); check HF_ENDPOINT")
    if _COMMIT.fullmatch(revision) and commit != revision:
        raise DownloadError(f"{endpoint} answers commit {commit} of {model.repository} when asked for {revision}")
    digest = model.pins.get(name)
    if offered.etag is not None and offered.size is not None and _SHA256.fullmatch(offered.etag):
        if digest is not None and digest != FileDigest(offered.size, offered.etag):
            raise DownloadError(
                f"{endpoint} offers other weights for {model.repository}/{name} than are published at commit {commit}: "
                f"SHA-256 {offered.etag} instead of {digest.sha256}. Do not use them; check HF_ENDPOINT"
            )
        digest = FileDigest(offered.size, offered.etag)
    if digest is None:
        raise DownloadError(f"{endpoint} gives no size and SHA-256 for {model.repository}/{name}; use another mirror")
    # The file itself lies on a storage host whose signed address is its own permit; the token must not go there.
    hubs = {urlsplit(address)[:2] for address in (endpoint, "https://huggingface.co")}
    return _Offer(commit, digest, offered.location, token if urlsplit(offered.location)[:2] in hubs else False)


def _download(target: Path, offer: _Offer, say: Callable[[str], None]) -> None:
    part = target.with_name(f".{target.name}.{offer.digest.sha256[:12]}.part")
    if part.exists() and part.stat().st_size > offer.digest.size_bytes:
        part.unlink()
    done = part.stat().st_size if part.exists() else 0
    missing = offer.digest.size_bytes - done
    free = shutil.disk_usage(target.parent).free
    if free < missing:
        raise DownloadError(
            f"Disk full: {target.parent} has {size_text(free)} free and {target.name} needs {size_text(missing)} more; "
            f"make room and {_AGAIN}"
        )
    so_far = f", continuing after {size_text(done)}" if done else ""
    say(f"{target.parent.name}: downloading {size_text(offer.digest.size_bytes)}{so_far}")  # the bar needs a terminal
    headers = {"Accept-Encoding": "identity"}  # a compressed body could not be continued by byte position
    if offer.token:
        headers["Authorization"] = f"Bearer {offer.token}"
    with part.open("ab") as stream:
        http_get(
            offer.location,
            stream,
            resume_size=done,
            headers=headers,
            expected_size=offer.digest.size_bytes,
            displayed_filename=f"{target.parent.name}/{target.name}",
        )
    say(f"{target.parent.name}: verifying {size_text(offer.digest.size_bytes)}")
    fault = checkpoint_fault(part, offer.digest, deep=True)
    if fault is not None:
        part.unlink()  # continuing it would give the same wrong file
        raise DownloadError(
            f"{target.parent.name}/{target.name} arrived corrupt ({fault}) and was removed; run make download-models "
            "again, and check HF_ENDPOINT or the proxy when it happens twice"
        )
    sync_to_disk(part)
    part.replace(target)
    for stale in target.parent.glob(f".{target.name}.*.part"):
        stale.unlink()  # the start of a revision that is no longer asked for


@contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise DownloadError(f"Another download is writing to {folder}; wait until it has finished") from exc
        yield


@contextmanager
def _errors_explained(model: PublishedModel, settings: Settings) -> Iterator[None]:
    """Translate what the hub's library, its HTTP client and the disk raise into a sentence for the operator."""
    try:
        yield
    except HfHubHTTPError as exc:
        raise DownloadError(_refusal(model, settings, exc)) from exc
    except (HFValidationError, httpx2.InvalidURL) as exc:
        raise DownloadError(f"{exc}; correct {model.name.upper()}_REPO or HF_ENDPOINT") from exc
    except (httpx2.HTTPError, OfflineModeIsEnabled) as exc:
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise HubUnreachableError(
            f"Cannot reach the model hub at {settings.hf_endpoint} ({reason}). "
            f"Check the network, the proxy and HF_ENDPOINT, then {_AGAIN}"
        ) from exc
    except OSError as exc:
        folder = model.folder(settings.models_dir)
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(f"Disk full while writing to {folder}; make room and {_AGAIN}") from exc
        # The library reports a body that is shorter or longer than announced as a plain OSError without a number.
        if exc.errno is None:
            reason = str(exc).splitlines()[0]
            raise DownloadError(f"{model.title}: the download broke off ({reason}); {_AGAIN}") from exc
        raise DownloadError(f"Cannot write to {folder}: {exc.strerror}; check its owner and permissions") from exc


def _refusal(model: PublishedModel, settings: Settings, exc: HfHubHTTPError) -> str:
    """One or two sentences for an answer that is not the file."""
    status = exc.response.status_code
    setting = model.name.upper()
    if "/resolve/" not in exc.response.request.url.path:  # the storage host, not the hub: its address lives for minutes
        return f"The hub's storage answered {status} for {model.repository}; {_AGAIN}"
    if isinstance(exc, RevisionNotFoundError):
        return f"{model.repository} has no revision {model.revision}; correct {setting}_REVISION"
    if isinstance(exc, RemoteEntryNotFoundError):
        return f"{model.repository} has no {' or '.join(model.files)} at {model.revision}; correct {setting}_REVISION"
    if model.gated and status in (401, 403):
        state = "set, but not accepted" if settings.hf_token.get_secret_value() else "not set"
        return (
            f"{model.repository} is gated and the hub refused us ({status}). Accept the licence at "
            f"https://huggingface.co/{model.repository} and check HF_TOKEN in .env (it is {state}), "
            "then run make download-models again. Without it: MODELS=birefnet"
        )
    if isinstance(exc, RepositoryNotFoundError) or status in (401, 403, 404):
        return (
            f"{settings.hf_endpoint} has no public repository {model.repository} ({status}); "
            f"correct {setting}_REPO or HF_ENDPOINT"
        )
    return f"{settings.hf_endpoint} answered {status} for {model.repository}; wait a while, then {_AGAIN}"
