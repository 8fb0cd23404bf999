"""`python -m shared.local demo|up|smoke`: the stack without Docker, and the client check.

demo   start everything on free ports, send the sample designs as one job, show the results, stop; exit 0
up     start everything and keep it up until Ctrl-C
smoke  check whatever runs at BASE_URL: health, then one job (with the key in CUTOUT_API_KEY, where it wants one)
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values

from shared.errors import FatalError
from shared.local.client import check_health, fetch_outputs, send_job
from shared.local.redis_server import free_port
from shared.local.sheet import write_sheet
from shared.local.stack import ChildDiedError, LocalStack
from shared.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests" / "data" / "samples"
_RUN_DIR = ROOT / ".run"
#: A worker that dies more often than this in a row has a fault that restarting does not mend.
_WORKER_RESTARTS = 5
#: After this long without a death (s) the count begins anew.
_HEALTHY_S = 120.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m shared.local", description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("demo", "up", "smoke"))
    command = parser.parse_args().command
    # INT too: started in the background by a script it would be ignored, and nothing could stop the stack in order.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return {"demo": demo, "up": up, "smoke": smoke}[command](_environment())
    except FatalError as exc:
        print(f"\n{exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; everything is stopped.", file=sys.stderr)
        return 130


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _environment() -> dict[str, str]:
    """The environment over the project's .env: the children read nothing but their environment.

    Containers' addresses mean nothing here, so REDIS_URL is always our own.
    """
    env = {name: value for name, value in dotenv_values(ROOT / ".env").items() if value is not None}
    if urlsplit(env.get("BASE_URL", "")).hostname in ("127.0.0.1", "localhost"):
        del env["BASE_URL"]  # compose's loopback address; ours follows from API_PORT
    env |= os.environ
    env.pop("REDIS_URL", None)
    return env


def demo(env: Mapping[str, str]) -> int:
    """The main job, once, with embedded defaults."""
    env = {
        **env,
        "MODEL_PROFILE": "starter",
        "MODELS": "rmbg,birefnet",
        "OUTPUTS_DIR": str(ROOT / "outputs"),
        "MODELS_DIR": str(ROOT / "models"),
        **dict.fromkeys(("API_KEYS", "RATE_LIMIT", "OUTPUT_URL_TTL"), ""),  # its own client, for a minute
        **{"GEMINI_API_KEY": "", "EXTRACT_DESIGN": "never"},  # nothing leaves the machine, whatever .env says
    }
    env.pop("BASE_URL", None)
    port = free_port()
    with LocalStack(ROOT, env, host="127.0.0.1", port=port, run_dir=_RUN_DIR / f"demo-{port}") as stack:
        _start(stack)
        front, back = SAMPLES / "front.png", SAMPLES / "back.jpg"
        print(f"\nPOST {stack.base_url}/process   front={front.name}  back={back.name}")
        reply, seconds = send_job(stack.base_url, front, back, client_id="demo")
        print(json.dumps(reply, indent=2))
        files = fetch_outputs(reply)
        # The second job meets warm models and caches: what a back end sees every day.
        _, warm_s = send_job(stack.base_url, front, back, client_id="demo-warm")
        print(f"\n{len(files)} cutouts in {seconds:.1f} s; the same job again, warm: {warm_s:.1f} s")
        for name in files:
            print(f"  {name:16} {ROOT / 'outputs' / reply[name].rpartition('/')[2]}")
        sheet = write_sheet(ROOT / "outputs" / "demo_sheet.png", {"front": front, "back": back}, files)
        print(f"  {'all on a page':16} {sheet}")
        if len(files) != 4:
            raise FatalError(f"The job delivered {len(files)} of 4 cutouts")
        print("\nStopping API, worker and Redis ...", end=" ", flush=True)
    shutil.rmtree(_RUN_DIR / f"demo-{port}", ignore_errors=True)  # kept when the demo fails: its logs say why
    print("done.")
    return 0


def up(env: Mapping[str, str]) -> int:
    """The stack until Ctrl-C."""
    given = {name: env[name.upper()] for name in Settings.model_fields if env.get(name.upper())}
    settings = load_settings(**given)
    port = settings.api_port
    env = {"LOG_FORMAT": "text", **env}
    # A folder per port: two stacks of one checkout must not share a Redis file.
    run_dir = _RUN_DIR / f"local-{port}"
    with LocalStack(ROOT, env, host=settings.api_host, port=port, run_dir=run_dir, to_terminal=True) as stack:
        stack.check_port()
        _start(stack)
        print(
            f"\nReady: {stack.base_url} (review page), {stack.base_url}/health. Ctrl-C stops everything.\n", flush=True
        )
        try:
            _keep_up(stack)
        except KeyboardInterrupt:
            print("\nStopping API, worker and Redis ...", flush=True)
    print("Everything is stopped.")
    return 0


def _keep_up(stack: LocalStack) -> None:
    restarts, last_s = 0, 0.0
    while True:
        time.sleep(0.5)
        if time.monotonic() - last_s > _HEALTHY_S:
            restarts = 0
        try:
            stack.check()
        except ChildDiedError as exc:
            if stack.worker is None or stack.worker.process.poll() is None or restarts == _WORKER_RESTARTS:
                raise
            restarts, last_s = restarts + 1, time.monotonic()
            print(f"{exc} Restarting it ({restarts} of {_WORKER_RESTARTS}).", file=sys.stderr, flush=True)
            stack.restart_worker()


def _start(stack: LocalStack) -> None:
    def start_both() -> None:  # the API comes up while the worker loads
        stack.start_worker()
        stack.start_api()
        stack.wait_for_api()

    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("Redis", stack.start_redis),
        ("worker and API", start_both),
        ("models", stack.wait_for_worker),
    )
    for number, (name, step) in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {name} ...", end=" ", flush=True)
        started = time.perf_counter()
        step()
        print(f"ready ({time.perf_counter() - started:.1f} s)", flush=True)


def smoke(env: Mapping[str, str]) -> int:
    """Health, then one job, against whatever is up at BASE_URL."""
    base_url = env.get("BASE_URL", "").rstrip("/") or "http://127.0.0.1:8001"
    print(f"GET {base_url}/health")
    print(json.dumps(check_health(base_url), indent=2))
    print(f"POST {base_url}/process")
    reply, seconds = send_job(
        base_url, SAMPLES / "front.png", SAMPLES / "back.jpg", "smoke", env.get("CUTOUT_API_KEY", "")
    )
    print(json.dumps(reply, indent=2))
    files = fetch_outputs(reply)
    print(f"\n{len(files)} of {len(reply['cells'])} cutouts delivered and downloaded in {seconds:.1f} s")
    return 0 if len(files) == len(reply["cells"]) else 1


if __name__ == "__main__":
    sys.exit(main())
