"""What the compose files, the Dockerfiles and the Makefile promise, read from their text: no Docker is needed."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.settings import Settings

ROOT = Path(__file__).parents[2]
#: `${NAME}`, `${NAME:-default}`, `${NAME:?message}`
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\}")
#: The commands of the seed's table.
SEED_COMMANDS = [
    *("help", "setup", "up", "down", "restart", "logs", "test", "shell", "status", "check-cache"),
    *("clean", "clean-full", "download-models"),
]


class _Loader(yaml.SafeLoader):
    """Reads compose's own tag `!reset`, which takes a value of the base file away."""


_Loader.add_constructor("!reset", lambda loader, node: "RESET")


def _load(name: str) -> Any:
    return yaml.load((ROOT / name).read_text(), Loader=_Loader)  # a SafeLoader with one more tag


def _with_defaults(text: str) -> str:
    """`text` as compose reads it when no variable is set."""
    return _VARIABLE.sub(lambda match: match["default"] or "", text)


SERVICES: dict[str, dict[str, Any]] = _load("docker-compose.yml")["services"]
#: What `make up` starts; the rest are one-shot tools behind a profile.
RUNNING = {name: service for name, service in SERVICES.items() if "profiles" not in service}


def test_up_starts_api_worker_redis_and_flower() -> None:
    assert set(RUNNING) == {"api", "worker", "redis", "flower"}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_image_is_ours_or_pinned_to_a_release(name: str) -> None:
    image = _with_defaults(SERVICES[name]["image"])
    if image.startswith("-"):  # ${COMPOSE_PROJECT_NAME}-api: built here
        assert image in ("-api:local", "-worker:local")
    else:
        assert re.search(r":\d+\.\d+\.\d+", image), image


@pytest.mark.parametrize("name", ["Dockerfile.api", "Dockerfile.worker"])
def test_dockerfiles_build_on_a_pinned_release_and_run_without_root(name: str) -> None:
    text = (ROOT / name).read_text()
    default = re.search(r"^ARG PYTHON_IMAGE=python:(\S+)$", text, re.MULTILINE)
    assert default is not None
    assert re.fullmatch(r"3\.12\.\d+-slim-bookworm", default[1])
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    assert "\nUSER ${APP_UID}:${APP_GID}\n" in text
    assert "\nHEALTHCHECK " in text
    assert "syntax=" not in text  # it would fetch a frontend, which fails offline
    assert re.search(r"^COPY (?:--chmod=755 )?(\.|models|outputs)", text, re.MULTILINE) is None  # no weights, no keys


def test_base_images_are_the_same_everywhere() -> None:
    places = [(ROOT / name).read_text() for name in ("Dockerfile.api", "Dockerfile.worker", "docker-compose.yml")]
    assert len({tag for text in places for tag in re.findall(r"python:3[\w.-]+", text)}) == 1


@pytest.mark.parametrize("name", sorted(RUNNING))
def test_every_service_has_a_healthcheck_and_comes_back_after_a_crash(name: str) -> None:
    assert RUNNING[name]["healthcheck"]["test"]
    assert RUNNING[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"]["max-size"]
    assert not service.get("privileged")
    assert "docker.sock" not in str(service)


@pytest.mark.parametrize("name", sorted(RUNNING))
def test_ports_are_published_on_loopback_unless_the_user_says_otherwise(name: str) -> None:
    for port in RUNNING[name].get("ports", []):
        assert _with_defaults(port).startswith("127.0.0.1:"), port


def test_redis_has_a_password_keeps_its_data_and_publishes_nothing() -> None:
    redis = RUNNING["redis"]
    assert "ports" not in redis
    assert redis["networks"] == ["queue"]
    assert _load("docker-compose.yml")["networks"]["queue"] == {"internal": True}
    assert "requirepass" in str(redis["command"])
    assert "--appendonly yes" in str(redis["command"])
    # A job must never be thrown away to make room for another.
    assert "--maxmemory-policy noeviction" in str(redis["command"])
    assert re.fullmatch(r"\d+(mb|gb)", _with_defaults(redis["environment"]["REDIS_MAXMEMORY"]))
    assert '--maxmemory "$$REDIS_MAXMEMORY"' in str(redis["command"]).replace("\\\\", "\\")
    assert redis["environment"]["REDISCLI_AUTH"].startswith("${REDIS_PASSWORD:?")  # no default: compose refuses
    assert "redis-data:/data" in redis["volumes"]


def test_redis_is_reached_by_password_and_only_from_its_own_network() -> None:
    clients = {name for name, service in RUNNING.items() if "queue" in service["networks"] and name != "redis"}
    assert clients == {"api", "worker", "flower"}
    for name in clients:
        url = RUNNING[name]["environment"].get("REDIS_URL") or RUNNING[name]["environment"]["CELERY_BROKER_URL"]
        assert url.startswith("redis://:${REDIS_PASSWORD:?")
    assert {name for name, service in SERVICES.items() if service.get("ports")} == {"api", "flower"}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_service_shares_the_hosts_namespaces_or_shows_a_secret_in_its_command(name: str) -> None:
    service = SERVICES[name]
    assert not {"network_mode", "pid", "ipc", "devices", "cap_add", "userns_mode"} & set(service)
    # What is on a command line, every process list shows.
    assert not re.search(r"\$\{\w*(PASSWORD|TOKEN|KEY)", str(service.get("command", "")))
    assert not re.search(r"(?i)password|token|_key", str(service["healthcheck"]))


def test_flower_asks_for_a_password_that_has_no_default() -> None:
    assert ":${FLOWER_PASSWORD:?" in RUNNING["flower"]["environment"]["FLOWER_BASIC_AUTH"]


def test_the_api_comes_up_while_the_worker_still_loads() -> None:
    assert RUNNING["api"]["depends_on"] == {"redis": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", ["api", "worker"])
def test_docker_waits_longer_than_a_stopping_process_may_take(name: str) -> None:
    grace_s = _with_defaults(RUNNING[name]["stop_grace_period"])
    assert grace_s.endswith("s")
    assert int(grace_s.removesuffix("s")) > Settings.model_fields["shutdown_grace_s"].default


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_only_the_download_may_write_to_the_weights(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        if ":/app/models" in volume:
            assert name == "download" or volume.endswith(":ro")


def test_the_gpu_is_pinned_and_the_cpu_override_takes_it_away() -> None:
    (device,) = RUNNING["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["device_ids"] == ["${GPU_DEVICE:-0}"]
    assert _load("docker-compose.cpu.yml")["services"]["worker"] == {
        "deploy": "RESET",
        "environment": {"DEVICE": "cpu"},
    }
    assert [name for name, service in SERVICES.items() if "deploy" in service] == ["worker"]


def _compose() -> list[str]:
    """The compose command, if there is one: the tests' own, or Docker's plugin."""
    package = importlib.util.find_spec("compose")
    if package is not None and package.origin is not None:
        return [str(Path(package.origin).with_name("docker-compose"))]
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [docker, "compose"]
    pytest.skip("docker compose is not here (make lint says so too)")


def _clean_environment() -> dict[str, str]:
    """Nothing that changes what the compose files mean, only what docker needs to find its plugins."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_CONFIG") if name in os.environ}


@pytest.mark.parametrize("gpu", [True, False])
def test_compose_itself_reads_the_files_as_we_mean_them(gpu: bool) -> None:
    options = ["--file=docker-compose.yml"] if gpu else ["--file=docker-compose.yml", "--file=docker-compose.cpu.yml"]
    config = subprocess.run(
        [*_compose(), "--env-file=/dev/null", *options, "--profile=*", "config", "--format=json"],
        cwd=ROOT,
        env=_clean_environment() | {"REDIS_PASSWORD": "red", "FLOWER_PASSWORD": "flo"},
        capture_output=True,
        text=True,
        check=True,
    )
    services = json.loads(config.stdout)["services"]
    assert ("deploy" in services["worker"]) == gpu
    assert services["worker"]["environment"]["REDIS_URL"] == "redis://:red@redis:6379/0"
    assert services["flower"]["environment"]["FLOWER_BASIC_AUTH"] == "admin:flo"
    assert services["flower"]["image"] == services["api"]["image"] == "cutout-service-api:local"
    assert {port["host_ip"] for service in services.values() for port in service.get("ports", [])} == {"127.0.0.1"}


def test_compose_refuses_to_start_without_passwords() -> None:
    done = subprocess.run(
        [*_compose(), "--env-file=/dev/null", "--file=docker-compose.yml", "config", "-q"],
        cwd=ROOT,
        env=_clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "make setup" in done.stderr


def test_keys_reach_only_the_containers_that_need_them() -> None:
    for name in RUNNING:
        service = RUNNING[name]
        if "env_file" in service:
            assert service["environment"]["HF_TOKEN"] == ""
            assert service["environment"]["FLOWER_PASSWORD"] == ""
    assert RUNNING["api"]["environment"]["GEMINI_API_KEY"] == ""
    assert "GEMINI_API_KEY" not in RUNNING["worker"]["environment"]  # from .env
    assert "env_file" in RUNNING["worker"]
    assert "env_file" not in RUNNING["redis"]
    assert "env_file" not in RUNNING["flower"]


def test_the_api_image_gets_neither_torch_nor_the_worker() -> None:
    packages = re.findall(r"^([\w-]+)==", (ROOT / "requirements/api.txt").read_text(), re.MULTILINE)
    assert "flask" in packages
    assert not {"torch", "torchvision", "opencv-python-headless", "numpy", "pillow"} & set(packages)
    copied = re.findall(
        r"^COPY (?!--from)(?:--chmod=755 )?(.+) \S+$", (ROOT / "Dockerfile.api").read_text(), re.MULTILINE
    )
    assert copied == ["requirements/api.txt requirements/constraints.txt", "shared/", "api/"]


def test_builds_see_only_what_is_named() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!").strip("/") for rule in rules if rule.startswith("!")}
    requirements = {f"requirements/{name}.txt" for name in ("api", "worker", "constraints")}
    assert allowed == requirements | {"shared", "api", "worker", "download"}


def test_the_volume_of_compiled_kernels_can_be_written_whoever_the_user_is() -> None:
    """A volume keeps owner and mode of its first start, also when APP_UID changes."""
    (kernels,) = [volume for volume in SERVICES["worker"]["volumes"] if volume.startswith("kernels:")]
    folder = kernels.partition(":")[2]
    text = (ROOT / "Dockerfile.worker").read_text()
    assert f"RUN install -d -m 1777 {folder}\n" in text
    assert f"TRITON_CACHE_DIR={folder} " in text
    assert not any(mount.startswith(f"{folder}:") for mount in SERVICES["worker"]["tmpfs"])  # nothing runs from there


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
@pytest.mark.parametrize(
    "command", ["nvidia-smi", "echo 'two  words' \"$HOME\"", "awk '{print $1}' /proc/loadavg | cat"]
)
def test_make_shell_hands_the_command_over_as_it_was_written(tmp_path: Path, command: str) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >"{tmp_path}/$2-$#"\n')
    docker.chmod(0o755)
    environment = _clean_environment() | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "COMPOSE_GPU": "0"}
    subprocess.run(["make", "shell", f"CMD={command}"], cwd=ROOT, env=environment, check=True, capture_output=True)
    (arguments,) = [path.read_text().split("\0")[:-1] for path in tmp_path.iterdir() if "\0exec\0" in path.read_text()]
    assert arguments[-4:] == ["worker", "bash", "-c", command]


@pytest.mark.parametrize("command", SEED_COMMANDS)
def test_the_seeds_commands_are_in_the_help(command: str) -> None:
    assert re.search(rf"^{command}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_only_clean_full_deletes_models_and_it_spares_the_tracked_ones() -> None:
    text = (ROOT / "Makefile").read_text()
    deleting = [line for line in text.splitlines() if re.search(r"rm -r|-exec rm|-delete", line)]
    touching = [line for line in deleting if "models" in line or "outputs" in line]
    assert len(touching) == 1
    assert "! -name starter" in touching[0]
    assert text.index(touching[0]) > text.index("\nclean-full:")
