"""Where a forward pass spends the device's time: by kernel and by module. `python -m benchmarks.cuda --only profile`.

Times are the kernels' own, so that waiting for launches does not count: their sum is what a CUDA graph comes down to.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

_MARK = "module: "
#: A module is listed from this share of the pass on.
_SHARE = 0.015


@contextmanager
def _marked(net: nn.Module) -> Iterator[None]:
    """Every module's call under its name; the blocks of a stage under one."""
    handles, open_marks = [], []

    def before(name: str) -> Any:
        def hook(*_: object) -> None:
            open_marks.append(record_function(_MARK + name))
            open_marks[-1].__enter__()

        return hook

    def after(*_: object) -> None:
        open_marks.pop().__exit__(None, None, None)

    for name, module in net.named_modules():
        known = re.sub(r"\.blocks\.\d+", ".blocks.*", name) if name.startswith("backbone.") else name
        handles.append(module.register_forward_pre_hook(before(known or "(all)")))
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def profile_pass(net: nn.Module, x: Tensor, top: int = 25) -> dict[str, Any]:
    """One pass of a warm network, not recorded as a graph.

    Returns:
        "milliseconds" of all kernels; the `top` "kernels" (operators on the CPU) and the "modules" with at least
        _SHARE of it, each a list of {"name", "milliseconds", "share", "calls"}. Modules include what is in them. On a
        card, kernels also have "where": milliseconds by innermost module, where it is known.
    """
    on_card = x.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    net(x)
    with _marked(net), profile(activities=activities, acc_events=True) as recorded:
        net(x)
        if on_card:
            torch.cuda.synchronize(x.device)
    events: Any = recorded.events()
    kernels: dict[str, list[float]] = defaultdict(list)
    modules: dict[str, list[float]] = defaultdict(list)
    places: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in events:
        marked = event.name.startswith(_MARK)
        if on_card and event.device_type != DeviceType.CPU:
            if not marked:
                kernels[event.name].append(event.self_device_time_total / 1e3)
        elif marked:
            time = event.device_time_total if on_card else event.cpu_time_total
            modules[event.name.removeprefix(_MARK)].append(time / 1e3)
        elif not on_card:
            kernels[event.name].append(event.self_cpu_time_total / 1e3)
    for event in events:
        # A launch outside an operator, as of our own kernels, has none.
        for kernel in getattr(event, "kernels", ()):
            places[kernel.name][_module_of(event)] += kernel.duration / 1e3
    total = sum(sum(times) for times in kernels.values())
    return {
        "milliseconds": total,
        "kernels": [{**row, "where": _largest(places[row["name"]])} for row in _rows(kernels, total)[:top]],
        "modules": [row for row in _rows(modules, total) if row["share"] >= _SHARE],
    }


def _module_of(event: Any) -> str:
    """The innermost module in whose call an operator ran."""
    while event is not None and not event.name.startswith(_MARK):
        event = event.cpu_parent
    return "" if event is None else str(event.name).removeprefix(_MARK)


def _largest(times: dict[str, float], most: int = 4) -> dict[str, float]:
    """Milliseconds by module, most first."""
    return dict(sorted(times.items(), key=lambda item: -item[1])[:most])


def _short(name: str) -> str:
    """A kernel's name without what all of torch's elementwise kernels begin with."""
    for noise in ("void ", "at::native::", "(anonymous namespace)::", "gpu_kernel_impl_nocast<", "std::"):
        name = name.replace(noise, "")
    return name


def _rows(times: dict[str, list[float]], total: float) -> list[dict[str, Any]]:
    """Most time first."""
    rows = [
        {"name": name, "milliseconds": sum(part), "share": sum(part) / total if total else 0.0, "calls": len(part)}
        for name, part in times.items()
    ]
    return sorted(rows, key=lambda row: -float(str(row["milliseconds"])))


def show_profile(what: str, result: dict[str, Any]) -> None:
    """Print it: kernels by time, modules by name."""
    print(f"\n{what}: {result['milliseconds']:.2f} ms of kernels")
    _show(result["kernels"])
    print("by module, what is inside included:")
    _show(sorted(result["modules"], key=lambda row: str(row["name"])))


def _show(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        print(f"{row['milliseconds']:>9.3f} ms {row['share']:>5.0%} {row['calls']:>5}x  {_short(row['name'])[:90]}")
        if row.get("where"):
            print(" " * 27 + ", ".join(f"{name} {time:.3f}" for name, time in row["where"].items()))
