"""Everything about speed that needs a card, in one command: `python -m benchmarks.cuda` or `make bench-cuda`.

Parts, each printed when it is done and none lost to the failure of another:

- `golden`: golden vectors in fp16, the network as published and the inference form, by torch's operators, with our own
  kernels, and recorded.
- `search` (by --only): a pass with and without cuDNN's search for the fastest convolutions, and what the search takes.
- `forward`: the forward pass by path and batch, with the share of the card's measured matrix rate.
- `profile` (with --profile or by --only): the kernels and modules of a pass, batch 1 and 4.
- `aot` (with --aot): the compiled pass.
- `resident`: both models loaded as the worker loads them: seconds of loading and of first passes, peak device memory, a
  job of two sides by two models at 1024 px from prepared files to PNGs on disk.
- `start` (by --only): a worker's start, from its process to ready, cold and warm; it needs Redis and Celery.

Weights are the golden ones, so no checkpoint is needed. `--rehearse` goes through all of it on the CPU at toy size, to
check the script itself.
"""

import argparse
import gc
import io
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor

from benchmarks import engine as forward_benchmark
from benchmarks.forward import (
    WithoutOwnKernels,
    golden_batch,
    golden_network,
    interleaved,
    matrix_rate,
    seconds,
    synchronise,
)
from benchmarks.profile import profile_pass, show_profile
from download.manifest import selected_models, starter_checkpoint
from shared.settings import load_settings
from tests.golden import fill_recipe
from worker.engine import Engine, configure_torch
from worker.images import cut_out, decode, encode_png, mask_at_size, network_input
from worker.nets import CONFIGS, save_checkpoint
from worker.nets.fast import own, prepare_for_inference
from worker.nets.fast.compiled import Compiled
from worker.nets.fast.graphs import Graphed
from worker.registry import ModelSpec

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
#: Suggested limits of tests/golden/README.md for fp16: alpha, largest and mean difference.
LIMITS = (0.015, 0.0015)


def golden(device: torch.device, dtype: torch.dtype, cases: dict[str, tuple[str, int]]) -> list[dict[str, Any]]:
    """Every form of the network against the official implementation's tensors."""
    rows = []
    for case, (variant, size) in cases.items():
        plain = golden_network(variant).to(device, dtype)
        fast = prepare_for_inference(plain)
        # A kernel of our own that reads where it must not would end every pass after it: those without come first.
        forms: dict[str, torch.nn.Module] = {"plain": plain, "fast-torch": WithoutOwnKernels(fast), "fast": fast}
        if device.type == "cuda":
            forms["graphs"] = Graphed(fast)
        x = fill_recipe.image_tensor(size, size).to(device, dtype)
        for form, net in forms.items():
            logits = net(x)[0, 0].float().cpu().numpy()
            found = {key: float(value) for key, value in fill_recipe.compare(GOLDEN / f"{case}.npz", logits).items()}
            within = found["alpha_max"] <= LIMITS[0] and found["alpha_mean"] <= LIMITS[1]
            rows.append({"case": case, "form": form, "within_limits": within, **found})
            print(
                f"{case} {form:10}: alpha max {found['alpha_max']:.4f} mean {found['alpha_mean']:.5f} "
                f"{'ok' if within else 'BAD'}"
            )
    return rows


def search(variant: str, device: torch.device, dtype: torch.dtype, batches: list[int], repeats: int) -> dict[str, Any]:
    """Seconds of the first pass and of later (recorded) ones, as cuDNN guesses and as it finds by trying.

    The first pass of all also tries and may compile our own kernels; own.fastest tries some per batch size. Each row is
    measured in a thread of its own: torch keeps what cuDNN has found per thread, guesses too, and looks there first.
    """

    @torch.no_grad()
    def measure(x: Tensor, tries: bool) -> dict[str, float]:
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, tries
        try:
            with patch.dict(own._fastest, clear=True):
                first = seconds(partial(net, x), device)
                recorded = Graphed(net) if device.type == "cuda" else net
                return {"first_seconds": first, **interleaved({"seconds": partial(recorded, x)}, repeats, device)}
        finally:
            torch.backends.cudnn.benchmark = before

    net = prepare_for_inference(golden_network(variant).to(device, dtype))
    report: dict[str, Any] = {"matrix_gflops": matrix_rate(device, dtype) / 1e9}
    print(f"matrix rate {report['matrix_gflops']:.0f} GFLOP/s")
    for batch in batches:
        x = golden_batch(CONFIGS[variant].input_size, batch).to(device, dtype)
        for what, tries in (("guessed", False), ("tried", True)):
            with ThreadPoolExecutor(1) as thread:
                row = thread.submit(measure, x, tries).result()
            report[f"{what}_batch_{batch}"] = row
            print(f"convolutions {what}, batch {batch}: {row}")
    return report


def profiles(
    variant: str, device: torch.device, dtype: torch.dtype, batches: list[int], size: int | None = None
) -> dict[str, Any]:
    """Where the time of a pass goes, by batch."""
    net = prepare_for_inference(golden_network(variant).to(device, dtype))
    report = {}
    for batch in batches:
        x = golden_batch(size or CONFIGS[variant].input_size, batch).to(device, dtype)
        report[str(batch)] = profile_pass(net, x)
        show_profile(f"{variant}, batch {batch}", report[str(batch)])
    return report


def compiled(
    variant: str, device: torch.device, dtype: torch.dtype, batches: list[int], repeats: int
) -> dict[str, Any]:
    """Seconds of the compiled pass by batch, and of making it and of loading it again."""
    size, report = CONFIGS[variant].input_size, {}
    with tempfile.TemporaryDirectory() as folder:
        for batch in batches:
            x = golden_batch(size, batch).to(device, dtype)
            starts = {}
            for what in ("compile", "load"):
                net: torch.nn.Module = Compiled(
                    prepare_for_inference(golden_network(variant).to(device, dtype), pack=False), Path(folder)
                )
                if device.type == "cuda":
                    net = Graphed(net)
                started = time.perf_counter()
                net(x)
                synchronise(device)
                starts[f"{what}_seconds"] = time.perf_counter() - started
            report[str(batch)] = {**starts, "seconds": interleaved({"aot": lambda: net(x)}, repeats, device)["aot"]}  # noqa: B023
            print(f"aot, batch {batch}: {report[str(batch)]}")
    return report


def engines(variant: str, device: torch.device, folder: Path) -> tuple[list[Engine], dict[str, float]]:
    """Two resident models from one file, as the worker loads them, and seconds of loading."""
    path = folder / "model.safetensors"
    save_checkpoint(golden_network(variant), path)
    started = time.perf_counter()
    made = [Engine(ModelSpec(name, "full", variant, path, "-"), device, use_fp16=True) for name in ("rmbg", "birefnet")]
    synchronise(device)
    return made, {"load_both_seconds": time.perf_counter() - started}


def first_passes(both: list[Engine], batches: tuple[int, ...]) -> dict[str, float]:
    """Seconds of each model's first pass of each batch size, which on CUDA records it."""
    times = {}
    for engine in both:
        for batch in batches:
            x = golden_batch(engine.input_size, batch).to(engine.device, engine.dtype)
            times[f"first_pass_{engine.name}_batch_{batch}_seconds"] = seconds(partial(engine.masks, x), engine.device)
    return times


def memory(device: torch.device) -> dict[str, float | None]:
    """Peak device memory since the last reset, in bytes; None without a card.

    Loading, and every batch size's first pass, must lie behind the reset: a graph that is replayed uses memory that the
    allocator does not count as allocated.
    """
    if device.type != "cuda":
        return {"peak_allocated_bytes": None, "peak_reserved_bytes": None}
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
    }


def prepared_side(name: str) -> bytes:
    """A sample design at 1024x1024, as a PNG file."""
    file = io.BytesIO()
    Image.open(ROOT / "tests" / "data" / "samples" / name).convert("RGB").resize((1024, 1024)).save(file, "PNG")
    return file.getvalue()


def job(both: list[Engine], sides: list[bytes], folder: Path, threads: ThreadPoolExecutor) -> None:
    """Two prepared sides through two models to four PNGs: decode and finish on threads, one batch per model."""

    def finish(number: int, mask: torch.Tensor) -> None:
        picture = pictures[number // 2]
        cutout = cut_out(picture, mask_at_size(mask, picture.height, picture.width))
        with (folder / f"{number}.png").open("wb") as file:
            file.writelines(encode_png(cutout))

    pictures = list(threads.map(lambda data: decode(data, pixel_limit=10**9), sides))
    cells = []
    for number, engine in enumerate(both):
        inputs = [network_input(picture, engine.input_size, engine.device, engine.dtype) for picture in pictures]
        for side, mask in enumerate(engine.masks(torch.cat(inputs))):
            cells.append(threads.submit(finish, 2 * side + number, mask))
    for cell in cells:
        cell.result()


def time_job(both: list[Engine], repeats: int, folder: Path) -> dict[str, float]:
    sides = [prepared_side("front.png"), prepared_side("back.jpg")]
    times = []
    with ThreadPoolExecutor(4) as threads:
        for _ in range(repeats + 1):
            started = time.perf_counter()
            job(both, sides, folder, threads)
            times.append(time.perf_counter() - started)
    return {
        "first_seconds": times[0],
        "median_seconds": statistics.median(times[1:]),
        "slowest_seconds": max(times[1:]),
    }


def resident(variant: str, device: torch.device, repeats: int) -> dict[str, Any]:
    """Both models at once, as in the worker."""
    report: dict[str, Any] = {}
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        both, report["start"] = engines(variant, device, Path(folder))
        report["start"] |= first_passes(both, (1, 2))
        report["memory"] = memory(device)  # before a batch of four takes more
        print(f"memory, both models, from loading to batches of 2: {report['memory']}")
        report["start"] |= first_passes(both, (4,))
        print(f"start: {report['start']}")
        report["job_2x2_1024"] = time_job(both, repeats, Path(folder))
        print(f"job, 2 sides x 2 models, 1024 px: {report['job_2x2_1024']}")
    return report


def worker_starts(variant: str) -> dict[str, Any]:
    """Seconds of a worker's start by part, without and with what the first one left: kernels, pages of the files."""
    from benchmarks.start import start_once  # here: it needs a Redis server, the other parts do not
    from shared.local.redis_server import RedisServer

    settings = load_settings()
    report = {}
    with RedisServer() as server, tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        chosen, profile = selected_models(settings), "full"
        first, *others = [model.checkpoint(models) for model in chosen]
        if variant == "toy":  # no worker loads it
            variant, profile = "starter", "starter"
            first, *others = [starter_checkpoint(models, model.name) for model in chosen]
        save_checkpoint(golden_network(variant), first)
        for other in others:
            other.parent.mkdir(parents=True, exist_ok=True)
            os.link(first, other)
        env = {
            **os.environ,
            "MODELS_DIR": str(models),
            "MODEL_PROFILE": profile,
            "OUTPUTS_DIR": f"{folder}/outputs",
            "REDIS_URL": server.url,
            "LOG_FORMAT": "json",
        }
        for what in ("first", "again"):
            report[what] = start_once(env)
            print(f"start of a worker, {what}: {report[what]}")
    return report


PARTS = ("golden", "search", "forward", "profile", "aot", "resident", "start")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts; default: golden, forward, resident")
    parser.add_argument("--batches", nargs="+", type=int, help="of search, forward, profile, aot; default: 1 2 4")
    parser.add_argument("--paths", nargs="+", help="of forward, as in benchmarks.engine; default: all there are")
    parser.add_argument("--torchvision", action="store_true", help="also with torchvision's operator")
    parser.add_argument("--official", type=Path, metavar="CHECKOUT", help="also the official implementation")
    parser.add_argument("--torch-only", action="store_true", help="everything without our own kernels")
    parser.add_argument("--aot", action="store_true", help="also compile (minutes)")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="also the profile, written there too")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU at toy size, to check this script")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too, after each part")
    arguments = parser.parse_args(argv)
    if not arguments.rehearse and not torch.cuda.is_available():
        print(
            "No CUDA device is visible to torch; nothing was measured. Check nvidia-smi, or --rehearse to check this "
            "script on the CPU; python -m benchmarks.engine measures the CPU.",
            file=sys.stderr,
        )
        return 2
    if arguments.torch_only:
        with patch.object(own, "own_kernels", lambda device: None):
            return run(arguments)
    return run(arguments)


def run(arguments: argparse.Namespace) -> int:
    """The parts that are asked for; the exit status."""
    began = time.perf_counter()
    configure_torch(load_settings())
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    dtype = torch.float32 if arguments.rehearse else torch.float16
    variant = "toy" if arguments.rehearse else "swin_v1_large"
    batches = arguments.batches or ([1, 2] if arguments.rehearse else [1, 2, 4])
    cases = {"swin_v1_t_256x256": ("swin_v1_tiny", 256)}
    if not arguments.rehearse:
        cases["swin_v1_l_512x512"] = ("swin_v1_large", 512)
    options = forward_benchmark.parse(
        ["--device", device.type, "--repeats", str(arguments.repeats), "--batches", *map(str, batches)]
    )
    options.torchvision, options.official, options.paths = arguments.torchvision, arguments.official, arguments.paths

    def forward() -> dict[str, Any]:
        result = forward_benchmark.measure(variant, options, device, dtype)
        forward_benchmark.show(result)
        return result

    parts: dict[str, Callable[[], Any]] = {
        "golden": lambda: golden(device, dtype, cases),
        "search": lambda: search(variant, device, dtype, batches, arguments.repeats),
        "forward": forward,
        "profile": lambda: profiles(variant, device, dtype, [batch for batch in batches if batch != 2]),
        "aot": lambda: compiled(variant, device, dtype, batches, arguments.repeats),
        "resident": lambda: resident(variant, device, arguments.repeats),
        "start": lambda: worker_starts(variant),
    }
    wanted = set(arguments.only or ("golden", "forward", "resident"))
    wanted |= {name for name in ("aot", "profile") if getattr(arguments, name)}
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else "cpu (a rehearsal, not a measurement)",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "own_kernels": own.own_kernels(torch.device(device.type, 0) if device.type == "cuda" else device) is not None,
        "part_seconds": {},
        "failed": {},
    }
    print(
        f"{report['device']}, torch {report['torch']}, own kernels {'run' if report['own_kernels'] else 'do not run'}"
    )
    for name, measure in parts.items():
        if name not in wanted:
            continue
        started = time.perf_counter()
        try:
            report[name] = measure()
        except Exception as exc:  # noqa: BLE001, RUF100 - what is measured so far, and what comes, shall not be lost
            traceback.print_exc(file=sys.stdout)
            report["failed"][name] = f"{type(exc).__name__}: {exc}"
        report["part_seconds"][name] = time.perf_counter() - started
        print(
            f"-- {name}: {report['part_seconds'][name]:.1f} s, {time.perf_counter() - began:.1f} s in all", flush=True
        )
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=2) + "\n")
        if arguments.profile and name == "profile":
            arguments.profile.write_text(json.dumps(report.get(name), indent=2) + "\n")
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    right = all(row["within_limits"] for row in report.get("golden", []))
    return 0 if right and not report["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
