"""What is published: which file of which repository at which commit, under which licence, and where it lies here.

Light on purpose: `worker.registry` imports this module, so it loads neither torch nor huggingface_hub.

Only `model.safetensors` is fetched. The repositories also hold Python files for `trust_remote_code`, ONNX exports and a
pickle; our networks are our own code and load tensors only, so none of those has a use here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import FatalError
from shared.settings import Settings

CHECKPOINT = "model.safetensors"
#: Folder inside `models_dir` for our own small checkpoints, which are in git.
STARTER_FOLDER = "starter"


@dataclass(frozen=True)
class FileDigest:
    """What a file must be: its size in bytes and its SHA-256 in lower-case hex."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class PublishedModel:
    """One published model as the settings ask for it.

    Attributes:
        name: the word in `MODELS`, for example `rmbg`.
        repository: `owner/name` on the hub.
        revision: commit, tag or branch, as set.
        licence_note: one sentence about what the licence asks of the user.
        gated: True when the hub wants an accepted licence and a token.
        files: the files needed, all in the top folder of the repository.
        pins: size and hash by file name, known without asking anyone; empty unless `revision` is the pinned commit.
    """

    name: str
    repository: str
    revision: str
    licence: str
    licence_url: str
    licence_note: str
    gated: bool
    files: tuple[str, ...] = (CHECKPOINT,)
    pins: Mapping[str, FileDigest] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name of the repository without its owner, for example `RMBG-2.0`; also the name of the local folder."""
        return self.repository.rsplit("/", 1)[-1]

    def folder(self, models_dir: Path) -> Path:
        """Where this model's files lie."""
        return models_dir / self.title

    def checkpoint(self, models_dir: Path) -> Path:
        """Where the weights lie, whether or not they have been downloaded."""
        return self.folder(models_dir) / CHECKPOINT


#: Sizes and hashes of the weights at the commits that `Settings` pins. A mirror (`HF_ENDPOINT`) that offers anything
#: else at these commits is refused. Each value was found in two or more unrelated public repositories:
#: - RMBG-2.0: commit in shayyz-code/rmbg-cli (runtime/rmbg_runtime.py; "authenticated revision verified by this
#:   project"); commit with this SHA-256 in two ComfyUI packs (`HuggingFaceWeight(repo_id="briaai/RMBG-2.0", ...)`) and
#:   a TRELLIS.2 pipeline (`REMBG_REVISION`, `REMBG_FILES`); SHA-256 with this size in a downloader of
#:   briaai/RMBG-2.0 at `main` (`SIZE = 884_878_856`). fp32.
#: - BiRefNet: commit in jordanfelle/nicti (bench/birefnet-verify); commit, size and SHA-256 together in an artifact
#:   verification record (2026-07-29), in a pipeline's pins (`BIREFNET = {"repo": ...}`), and in a benchmark report that
#:   cites huggingface.co/ZhengPeng7/BiRefNet/tree/<commit>. fp16.
_PINS: Mapping[tuple[str, str], Mapping[str, FileDigest]] = {
    ("briaai/RMBG-2.0", "5df4c9c76d8170882c34f6986e848ee07fd0ba43"): {
        CHECKPOINT: FileDigest(884_878_856, "566ed80c3d95f87ada6864d4cbe2290a1c5eb1c7bb0b123e984f60f76b02c3a7")
    },
    ("ZhengPeng7/BiRefNet", "e2bf8e4460fc8fa32bba5ea4d94b3233d367b0e4"): {
        CHECKPOINT: FileDigest(444_473_596, "9ab37426bf4de0567af6b5d21b16151357149139362e6e8992021b8ce356a154")
    },
}

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*")


def published_models(settings: Settings) -> dict[str, PublishedModel]:
    """Every model we know how to download, by its name in `MODELS`; with the repositories and revisions of `settings`.

    Raises:
        FatalError: a repository is not `owner/name`, a revision has odd characters, or two would share a folder.
    """
    models = (
        PublishedModel(
            name="rmbg",
            repository=settings.rmbg_repo,
            revision=settings.rmbg_revision,
            licence="CC BY-NC 4.0",
            licence_url="https://creativecommons.org/licenses/by-nc/4.0/",
            licence_note="RMBG-2.0 is for non-commercial use; commercial use needs an agreement with Bria.",
            gated=True,
            pins=_PINS.get((settings.rmbg_repo, settings.rmbg_revision), {}),
        ),
        PublishedModel(
            name="birefnet",
            repository=settings.birefnet_repo,
            revision=settings.birefnet_revision,
            licence="MIT",
            licence_url="https://github.com/ZhengPeng7/BiRefNet/blob/main/LICENSE",
            licence_note="BiRefNet may be used commercially; keep its copyright and permission notice.",
            gated=False,
            pins=_PINS.get((settings.birefnet_repo, settings.birefnet_revision), {}),
        ),
    )
    for model in models:
        if not _REPOSITORY.fullmatch(model.repository):
            raise FatalError(f"{model.name.upper()}_REPO is {model.repository!r}; write it as owner/name")
        if not _REVISION.fullmatch(model.revision):
            raise FatalError(f"{model.name.upper()}_REVISION is {model.revision!r}; use a commit, tag or branch name")
    folders = [STARTER_FOLDER, *(model.title for model in models)]
    if len(set(folders)) != len(folders):
        raise FatalError(f"RMBG_REPO and BIREFNET_REPO need folders of their own in models/, not {', '.join(folders)}")
    return {model.name: model for model in models}


def selected_models(settings: Settings) -> list[PublishedModel]:
    """The models that `MODELS` names, in its order.

    Raises:
        FatalError: `MODELS` names one that is not published, or as `published_models`.
    """
    known = published_models(settings)
    unknown = [name for name in settings.models if name not in known]
    if unknown:
        raise FatalError(f"MODELS names {', '.join(unknown)}, which cannot be downloaded; known are {', '.join(known)}")
    return [known[name] for name in settings.models]


def starter_checkpoint(models_dir: Path, name: str) -> Path:
    """Where our own small checkpoint for the model `name` lies."""
    return models_dir / STARTER_FOLDER / f"{name}.safetensors"
