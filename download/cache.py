"""What lies in `models/`: the record beside each download, and whether a checkpoint is whole.

A record is `models/<folder>/manifest.json`. It holds the commit that a branch or tag stood for when it was downloaded,
so a later run asks for the same weights even when the branch has moved.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from download.manifest import FileDigest, PublishedModel

RECORD_NAME = "manifest.json"

#: A safetensors header longer than this is garbage, not a header (the format's own limit).
_HEADER_LIMIT_BYTES = 100_000_000


@dataclass(frozen=True)
class Record:
    """What was downloaded into one folder.

    Attributes:
        requested: the revision as it was set then; `commit` is what it stood for, 40 hex digits.
        downloaded_at: ISO 8601, UTC.
        files: size and hash by file name, as the hub reported them.
    """

    model: str
    repository: str
    requested: str
    commit: str
    licence: str
    downloaded_at: str
    files: dict[str, FileDigest]

    def answers(self, model: PublishedModel) -> bool:
        """True when this is a record of the repository and revision that `model` asks for."""
        return self.repository == model.repository and model.revision in (self.requested, self.commit)


def read_record(folder: Path) -> Record | None:
    """The record in `folder`; None when there is none or it cannot be read as one."""
    try:
        fields = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        fields["files"] = {
            name: FileDigest(int(digest["size_bytes"]), str(digest["sha256"]))
            for name, digest in fields["files"].items()
        }
        return Record(**fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_record(folder: Path, record: Record) -> None:
    """Put the record in place in one step, so that a reader never sees half of it.

    Raises:
        OSError: the folder cannot be written to.
    """
    beside = folder / f".{RECORD_NAME}.new"
    beside.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    beside.replace(folder / RECORD_NAME)


def checkpoint_fault(path: Path, digest: FileDigest | None, *, deep: bool = False) -> str | None:
    """Why the checkpoint at `path` cannot be used, in a few words; None when it is whole.

    Args:
        path: a safetensors file.
        digest: what the file must be; None when nobody has said, then only the file's own header is believed.
        deep: hash the whole file too (about 1 s per GB) instead of trusting its size and header.
    """
    try:
        size_bytes = path.stat().st_size
        if digest is not None and size_bytes != digest.size_bytes:
            return f"{size_bytes} bytes, expected {digest.size_bytes}"
        fault = _header_fault(path, size_bytes)
        if fault is None and deep and digest is not None:
            found = _sha256(path)
            if found != digest.sha256:
                return f"SHA-256 is {found[:12]}..., expected {digest.sha256[:12]}..."
        return fault
    except OSError as exc:
        return exc.strerror or str(exc)


def size_text(size_bytes: int) -> str:
    """A size for people, in decimal units: `444.5 MB`."""
    value, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{size_bytes} B" if unit == "B" else f"{value:.1f} {unit}"


def folder_size_bytes(folder: Path) -> int:
    """Sum of the sizes of all files below `folder`; 0 when it does not exist."""
    return sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _header_fault(path: Path, size_bytes: int) -> str | None:
    """Check what safetensors promises: a length, a JSON table, and tensors that end exactly at the end of the file.

    Source: https://huggingface.co/docs/safetensors/index#format
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size_bytes < 8 or not 2 <= length <= min(_HEADER_LIMIT_BYTES, size_bytes - 8):
            return "not a safetensors file (bad header length)"
        try:
            table = json.loads(stream.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in table.items() if name != "__metadata__"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return "not a safetensors file (bad header)"
    if not ends:
        return "holds no tensors"
    expected = 8 + length + max(ends)
    # The header is the first thing in the file, so this also sees a truncated file that nobody has a record of.
    return None if size_bytes == expected else f"{size_bytes} bytes, its header promises {expected}"


def sync_to_disk(path: Path) -> None:
    """Wait until the file's bytes are on the disk, so that a power cut after a rename cannot leave an empty file.

    Raises:
        OSError: the disk refused them.
    """
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
