"""The forward pass, by path, batch and type: `python -m benchmarks.engine [--variants swin_v1_tiny] [--json FILE]`.

Paths: `plain` (worker/nets as published), `torchvision` (the same with its operator; with --torchvision, where it is
installed), `official` (with --official CHECKOUT), `fast` (the inference form), on CUDA also `graphs`, and
`graphs-torch` (by torch's operators alone, without our own kernels). They run in turns; the ratio is to the fastest
baseline of the run. The share is the published network's FLOP per second over the measured rate of a large matrix
product.
"""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.forward import (
    Official,
    Torchvision,
    WithoutOwnKernels,
    flop_of,
    golden_batch,
    golden_network,
    interleaved,
    matrix_rate,
)
from worker.nets import CONFIGS, BiRefNet
from worker.nets.fast import prepare_for_inference
from worker.nets.fast.graphs import Graphed

BASELINES = ("plain", "torchvision", "official")


def paths(model: BiRefNet, arguments: argparse.Namespace, device: torch.device) -> dict[str, nn.Module]:
    """Name -> network, baselines first."""
    nets: dict[str, nn.Module] = {"plain": model}
    if arguments.torchvision:
        nets["torchvision"] = Torchvision(model)
    if arguments.official:
        nets["official"] = Official(arguments.official, model).to(device, next(model.parameters()).dtype)
    nets["fast"] = prepare_for_inference(model)
    if device.type == "cuda":
        fast = nets["fast"]
        nets["graphs"] = Graphed(fast)
        nets["graphs-torch"] = Graphed(WithoutOwnKernels(fast))
    return {name: net for name, net in nets.items() if not arguments.paths or name in arguments.paths}


def measure(variant: str, arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """One variant in one type: seconds and shares by batch and path."""
    size = arguments.size or CONFIGS[variant].input_size
    nets = paths(golden_network(variant).to(device, dtype), arguments, device)
    rate = matrix_rate(device, dtype)
    flop = flop_of(variant, size)
    rows = []
    expected = None
    for batch in arguments.batches:
        x = golden_batch(size, batch).to(device, dtype)
        times = interleaved({name: partial(net, x) for name, net in nets.items()}, arguments.repeats, device)
        base = [times[name] for name in BASELINES if name in times]
        for name, net in nets.items():
            logits = net(x).float()
            expected = logits if expected is None or expected.shape != logits.shape else expected
            rows.append(
                {
                    "path": name,
                    "batch": batch,
                    "seconds": times[name],
                    "seconds_per_picture": times[name] / batch,
                    "ratio_to_fastest_baseline": min(base) / times[name] if base else None,
                    "share_of_matrix_rate": flop * batch / times[name] / rate,
                    "largest_logit_difference": float((logits - expected).abs().max()),
                }
            )
    return {
        "variant": variant,
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "gflop_published": flop / 1e9,
        "gflop_fast": flop_of(variant, size, prepare_for_inference) / 1e9,
        "matrix_gflops": rate / 1e9,
        "rows": rows,
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"\n{result['variant']} {result['size']} px {result['dtype']}: {result['gflop_published']:.0f} GFLOP as "
        f"published, {result['gflop_fast']:.0f} rewritten; matrix rate {result['matrix_gflops']:.0f} GFLOP/s"
    )
    print(f"{'path':12} {'batch':>5} {'s':>9} {'s/picture':>10} {'ratio':>6} {'share':>6} {'max |dlogit|':>13}")
    for row in result["rows"]:
        ratio = row["ratio_to_fastest_baseline"]
        print(
            f"{row['path']:12} {row['batch']:>5} {row['seconds']:>9.3f} {row['seconds_per_picture']:>10.3f} "
            f"{'-' if ratio is None else f'{ratio:.2f}':>6} {row['share_of_matrix_rate']:>6.0%} "
            f"{row['largest_logit_difference']:>13.1e}"
        )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=["starter", "swin_v1_tiny"], choices=sorted(CONFIGS))
    parser.add_argument("--size", type=int, help="side of the input; default: the variant's own")
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "float16"], help="default: float32, on CUDA float16")
    parser.add_argument("--paths", nargs="+", help="only these; default: all there are")
    parser.add_argument("--torchvision", action="store_true", help="also with torchvision's operator")
    parser.add_argument("--official", type=Path, metavar="CHECKOUT", help="also the official implementation")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    return parser.parse_args(argv)


def main() -> int:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    device = torch.device(arguments.device)
    results = []
    for name in arguments.dtypes or (["float16"] if device.type == "cuda" else ["float32"]):
        for variant in arguments.variants:
            results.append(measure(variant, arguments, device, getattr(torch, name)))
            show(results[-1])
    report = {"torch": torch.__version__, "device": str(device), "threads": arguments.threads, "results": results}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
