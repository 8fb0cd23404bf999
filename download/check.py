"""`python -m download --check`: what the model cache holds, and whether it is enough to start a worker."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from download.cache import checkpoint_fault, folder_size_bytes, read_record, size_text
from download.manifest import CHECKPOINT, PublishedModel, selected_models, starter_checkpoint
from shared.settings import Settings

State = Literal["ok", "missing", "corrupt", "outdated"]

_REMEDY = {
    "full": "Run make download-models",
    "starter": "Bring them back with git checkout models/starter",
    "auto": "Run make download-models, or bring the starter checkpoints back with git checkout models/starter",
}


@dataclass(frozen=True)
class Finding:
    """One line of the table: one checkpoint of one profile.

    Attributes:
        revision: the commit on the disk; `unrecorded` for a file that somebody put there by hand.
        detail: why the state is what it is, in a few words; empty when ok.
    """

    model: str
    profile: Literal["full", "starter"]
    path: Path
    size_bytes: int
    revision: str
    licence: str
    state: State
    detail: str = ""

    @property
    def verdict(self) -> str:
        """State and reason in one cell."""
        return f"{self.state}: {self.detail}" if self.detail else self.state


def find_full(model: PublishedModel, models_dir: Path, *, deep: bool = False) -> Finding:
    """The published checkpoint of `model` as it lies on the disk."""
    path = model.checkpoint(models_dir)
    record = read_record(path.parent)
    revision, detail = "-", ""
    state: State = "missing"
    if path.is_file():
        recorded = record.files.get(CHECKPOINT) if record is not None else None
        pinned = model.pins.get(CHECKPOINT)
        fault = checkpoint_fault(path, recorded or pinned, deep=deep)
        revision = record.commit[:12] if record is not None and recorded is not None else "unrecorded"
        if fault is not None:
            state, detail = "corrupt", fault
        elif record is not None and recorded is not None and not record.answers(model):
            state, detail = "outdated", f"{model.name.upper()}_REVISION asks for {model.revision[:12]}"
        else:
            state = "ok"
    return Finding(model.name, "full", path, _size_bytes(path), revision, model.licence, state, detail)


def find_starter(name: str, models_dir: Path) -> Finding:
    """Our own small checkpoint for the model `name`; git keeps its content, so only its shape is checked."""
    path = starter_checkpoint(models_dir, name)
    fault = checkpoint_fault(path, None) if path.is_file() else None
    state: State = "corrupt" if fault else "ok" if path.is_file() else "missing"
    revision = "-" if state == "missing" else "in git"
    return Finding(name, "starter", path, _size_bytes(path), revision, "MIT (ours)", state, fault or "")


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def faults_of(findings: list[Finding], profile: str) -> list[str]:
    """What keeps a worker from starting with this `MODEL_PROFILE`; empty when nothing does.

    `auto` takes the published file of a model where there is one, so a broken one is a fault even beside a good
    starter checkpoint: the worker would pick it.
    """
    faults = []
    for name in dict.fromkeys(finding.model for finding in findings):
        sets = {finding.profile: finding for finding in findings if finding.model == name}
        full, starter = sets["full"], sets["starter"]
        if profile == "auto":
            needed = full if full.state != "missing" else starter
            if needed.state == "missing":
                faults.append(f"{name}: neither {full.path} nor {starter.path} is there")
                continue
        else:
            needed = starter if profile == "starter" else full
        if needed.state != "ok":
            faults.append(f"{name}: {needed.path} is {needed.verdict}")
    return faults


def table(findings: list[Finding]) -> str:
    """The findings as aligned columns under a header."""
    rows = [("MODEL", "PROFILE", "PATH", "SIZE", "REVISION", "LICENCE", "FILES")]
    rows += [
        (
            finding.model,
            finding.profile,
            str(finding.path),
            size_text(finding.size_bytes) if finding.size_bytes else "-",
            finding.revision,
            finding.licence,
            finding.verdict,
        )
        for finding in findings
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def check(settings: Settings, *, deep: bool = False, say: Callable[[str], None] = print) -> bool:
    """Print the state of the cache.

    Args:
        deep: hash the published files too; without it their size and header are believed.
    Returns:
        True when everything that `MODEL_PROFILE` needs is there and whole.
    Raises:
        FatalError: `MODELS` names a model that nobody publishes.
    """
    findings = []
    for model in selected_models(settings):
        findings += [find_full(model, settings.models_dir, deep=deep), find_starter(model.name, settings.models_dir)]
    say(table(findings))
    say(f"Cache size: {size_text(folder_size_bytes(settings.models_dir))} in {settings.models_dir}")
    faults = faults_of(findings, settings.model_profile)
    if faults:
        say(f"MODEL_PROFILE={settings.model_profile} cannot start:")
        for fault in faults:
            say(f"  {fault}")
        say(_REMEDY[settings.model_profile])
    else:
        say(f"MODEL_PROFILE={settings.model_profile} has everything it needs")
    return not faults
