"""The model cache: what is published, which files count as whole, what a profile needs."""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from download.cache import Record, checkpoint_fault, read_record, size_text, write_record
from download.check import Finding, State, faults_of, find_full, table
from download.fetch import DownloadError, fetch
from download.manifest import (
    FileDigest,
    PublishedModel,
    published_models,
    selected_models,
    starter_checkpoint,
)
from shared.errors import FatalError
from shared.settings import Settings
from tests.hub import Hub, Repository, checkpoint_bytes

COMMIT = "1" * 40


def digest_of(content: bytes) -> FileDigest:
    return FileDigest(len(content), hashlib.sha256(content).hexdigest())


def a_model(**changes: object) -> PublishedModel:
    return dataclasses.replace(published_models(Settings())["birefnet"], revision=COMMIT, pins={}, **changes)  # type: ignore[arg-type]


def test_both_published_models_are_pinned_to_a_commit_with_size_and_hash() -> None:
    for model in published_models(Settings()).values():
        assert len(model.revision) == 40
        assert set(model.revision) <= set("0123456789abcdef")
        assert set(model.pins) == set(model.files)
        assert all(len(pin.sha256) == 64 and pin.size_bytes > 400_000_000 for pin in model.pins.values())


def test_another_revision_or_repository_does_not_inherit_the_pinned_hashes() -> None:
    models = published_models(Settings(birefnet_revision="main", rmbg_repo="mirror/RMBG-2.0"))
    assert not models["birefnet"].pins
    assert not models["rmbg"].pins


def test_the_licences_are_told_and_only_rmbg_is_gated() -> None:
    models = published_models(Settings())
    assert models["rmbg"].licence == "CC BY-NC 4.0"
    assert "commercial use needs an agreement with Bria" in models["rmbg"].licence_note
    assert models["birefnet"].licence == "MIT"
    assert [model.name for model in models.values() if model.gated] == ["rmbg"]


def test_paths_follow_the_repository_name() -> None:
    models = published_models(Settings())
    assert models["rmbg"].checkpoint(Path("models")) == Path("models/RMBG-2.0/model.safetensors")
    assert models["birefnet"].checkpoint(Path("models")) == Path("models/BiRefNet/model.safetensors")
    assert starter_checkpoint(Path("models"), "rmbg") == Path("models/starter/rmbg.safetensors")


def test_an_unknown_model_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(FatalError, match=r"MODELS names nonesuch.*known are rmbg, birefnet"):
        selected_models(Settings(models=("birefnet", "nonesuch")))


@pytest.mark.parametrize("repository", ["../../etc", "no-owner", "a/b/c", "owner/..", "https://huggingface.co/a/b"])
def test_a_repository_that_is_not_owner_and_name_is_refused(repository: str) -> None:
    with pytest.raises(FatalError, match="write it as owner/name"):
        published_models(Settings(birefnet_repo=repository))


def test_two_repositories_never_share_a_folder() -> None:
    with pytest.raises(FatalError, match="folders of their own"):
        published_models(Settings(birefnet_repo="someone/RMBG-2.0"))


def test_the_manifest_loads_neither_torch_nor_the_hub_library() -> None:
    code = (
        "import sys, download.manifest, download.cache, download.check; "
        "bad = {'torch', 'huggingface_hub', 'numpy', 'safetensors', 'flask', 'celery'} & set(sys.modules); "
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_whole_checkpoint_has_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoint_bytes())
    assert checkpoint_fault(path, None) is None
    assert checkpoint_fault(path, digest_of(checkpoint_bytes()), deep=True) is None


def test_a_truncated_checkpoint_is_seen_without_any_record(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoint_bytes()[:-1])
    assert "its header promises" in (checkpoint_fault(path, None) or "")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 444473596\n",
        b"<html>Sign in to continue</html>",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (7).to_bytes(8, "little") + b'{"a":1}',
    ],
)
def test_what_is_not_a_checkpoint_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert checkpoint_fault(path, None) is not None


def test_changed_bytes_of_the_right_length_are_seen_only_by_a_deep_check(tmp_path: Path) -> None:
    content = checkpoint_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert checkpoint_fault(path, digest_of(content)) is None
    assert "SHA-256" in (checkpoint_fault(path, digest_of(content), deep=True) or "")


def test_a_record_survives_a_round_trip_and_a_broken_one_counts_as_none(tmp_path: Path) -> None:
    record = Record("birefnet", "a/b", "main", COMMIT, "MIT", "2026-01-01T00:00:00+00:00", {"f": FileDigest(1, "0")})
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    for broken in ("", "[]", "{}", '{"files": {"f": 1}}'):
        (tmp_path / "manifest.json").write_text(broken)
        assert read_record(tmp_path) is None


def test_a_record_answers_for_the_branch_it_came_from_and_for_its_commit_only() -> None:
    record = Record("birefnet", "ZhengPeng7/BiRefNet", "main", COMMIT, "MIT", "", {})
    assert record.answers(dataclasses.replace(a_model(), revision="main"))
    assert record.answers(a_model())
    assert not record.answers(dataclasses.replace(a_model(), revision="2" * 40))
    assert not record.answers(a_model(repository="other/BiRefNet"))


def test_a_mirror_with_other_weights_at_a_pinned_commit_is_refused(tmp_path: Path) -> None:
    ours, theirs = checkpoint_bytes(seed=1), checkpoint_bytes(seed=2)
    model = dataclasses.replace(a_model(), pins={"model.safetensors": digest_of(ours)})
    with Hub({model.repository: Repository(COMMIT, {"model.safetensors": theirs})}) as hub:
        settings = Settings(models_dir=tmp_path, hf_endpoint=hub.endpoint)
        with pytest.raises(DownloadError, match="offers other weights"):
            fetch(model, settings, say=lambda line: None)
    assert not hub.downloads
    assert not model.checkpoint(tmp_path).exists()


def test_a_pinned_file_put_there_by_hand_is_adopted_without_asking_the_hub(tmp_path: Path) -> None:
    content = checkpoint_bytes()
    model = dataclasses.replace(a_model(), pins={"model.safetensors": digest_of(content)})
    model.folder(tmp_path).mkdir()
    model.checkpoint(tmp_path).write_bytes(content)
    said: list[str] = []
    assert not fetch(model, Settings(models_dir=tmp_path, hf_endpoint="http://127.0.0.1:9"), say=said.append)
    assert "verified the files already there" in said[-1]
    assert find_full(model, tmp_path).revision == COMMIT[:12]


def finding(model: str, profile: str, state: State) -> Finding:
    return Finding(model, profile, Path(f"{profile}/{model}"), 0, "-", "MIT", state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("profile", "full", "starter", "starts"),
    [
        ("full", "ok", "missing", True),
        ("full", "missing", "ok", False),
        ("full", "outdated", "ok", False),
        ("starter", "missing", "ok", True),
        ("starter", "corrupt", "ok", True),
        ("starter", "ok", "missing", False),
        ("auto", "ok", "missing", True),
        ("auto", "missing", "ok", True),
        ("auto", "missing", "missing", False),
        ("auto", "corrupt", "ok", False),  # the worker would pick the published file, because it is there
        ("auto", "missing", "corrupt", False),
    ],
)
def test_each_profile_needs_its_own_files(profile: str, full: State, starter: State, starts: bool) -> None:
    findings = [finding("rmbg", "full", full), finding("rmbg", "starter", starter)]
    assert (not faults_of(findings, profile)) is starts


def test_every_model_is_needed_not_just_one() -> None:
    states: dict[str, State] = {"rmbg": "missing", "birefnet": "ok"}
    findings = [finding(name, profile, state) for name, state in states.items() for profile in ("full", "starter")]
    assert faults_of(findings, "auto") == ["rmbg: neither full/rmbg nor starter/rmbg is there"]


def test_the_table_is_aligned() -> None:
    lines = table([finding("rmbg", "full", "ok"), finding("birefnet", "starter", "missing")]).splitlines()
    assert len({line.index(word) for line, word in zip(lines, ("FILES", "ok", "missing"), strict=True)}) == 1


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (999, "999 B"), (444_473_596, "444.5 MB"), (1_329_352_452, "1.3 GB")]
)
def test_sizes_are_told_in_decimal_units(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text
