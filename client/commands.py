"""What each command of `cutout` does; given the parsed arguments, it returns the exit status."""

import argparse
import json
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from client.api import CutoutClient
from client.errors import FAILED, CutoutError
from client.pairs import InputError, Pair, find_pairs, is_address, name_to_id, parse_options, read_csv, read_id
from client.run import run_pairs


def process(args: argparse.Namespace) -> int:
    """One design."""
    if not args.front and not args.back:
        raise InputError(["give --front, --back or both"])
    try:
        id = read_id(args.id) if args.id else name_to_id(_stem(args.front or args.back))
    except ValueError as exc:
        raise InputError([f"--id: {exc}"]) from exc
    return _run(args, [Pair(id, _picture(args.front), _picture(args.back))])


def _picture(text: str | None) -> Path | str | None:
    if text is None or is_address(text):
        return text
    if not Path(text).is_file():
        raise InputError([f"there is no file {text}"])
    return Path(text)


def _stem(picture: str) -> str:
    return "design" if is_address(picture) else Path(picture).stem


def folder(args: argparse.Namespace) -> int:
    """All pairs of a folder."""
    pairs, others = find_pairs(args.folder)
    for path in others:
        print(f"cutout: {path} belongs to no pair and is left out", file=sys.stderr)
    return _run(args, pairs)


def csv(args: argparse.Namespace) -> int:
    """All rows of a CSV file."""
    return _run(args, read_csv(args.file))


def _run(args: argparse.Namespace, pairs: list[Pair]) -> int:
    how = {"cancel_after_s": args.cancel_after, "fresh": args.fresh}
    with _client(args, retry_s=args.retry_s) as client:
        return run_pairs(
            client,
            pairs,
            folder=args.out,
            options=_options(args),
            concurrency=args.concurrency,
            resume=args.resume,
            as_json=args.json,
            **how,
        )


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Options from --options, then --option (`print.dpi=150` is inside `print`), then --models."""
    options: dict[str, Any] = {}
    try:
        options = parse_options(args.options) if args.options else {}
    except ValueError as exc:
        raise InputError([f"--options: {exc}"]) from exc
    for text in args.option:
        path, is_given, value = text.partition("=")
        *parents, name = path.split(".")
        if not is_given or not name:
            raise InputError([f"--option {text}: write KEY=VALUE"])
        inside = options
        for parent in parents:
            inside = inside.setdefault(parent, {})
            if not isinstance(inside, dict):
                raise InputError([f"--option {text}: {parent} is a value already"])
        inside[name] = _value(value)
    if args.models:
        options["models"] = args.models.split(",")
    return options


def _value(text: str) -> Any:
    """JSON where it is JSON (`true`, `0.4`, `["rmbg"]`), else the text itself (`auto`)."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def jobs(args: argparse.Namespace) -> int:
    """The newest jobs, one a line."""
    with _client(args) as client:
        for job in islice(client.list(status=args.status, id=args.id), args.limit):
            if args.json:
                print(job.model_dump_json(exclude_unset=True))
            else:
                at = f"{job.created_at:%Y-%m-%d %H:%M:%S}" if job.created_at else ""
                progress = f"{job.progress.done}/{job.progress.total}"
                print(f"{job.job_id}  {at:19}  {job.status:10}  {progress:5}  {job.id}")
    return 0


def cancel(args: argparse.Namespace) -> int:
    """Stop jobs; one that cannot be stopped does not keep the others."""
    status = 0
    with _client(args) as client:
        for job_id in args.job_id:
            try:
                job = client.cancel(job_id)
            except CutoutError as error:
                print(f"cutout: {error}", file=sys.stderr)
                status = FAILED
            else:
                print(job.model_dump_json(exclude_unset=True) if args.json else f"{job.job_id}: {job.status}")
    return status


def health(args: argparse.Namespace) -> int:
    """Whether the service is ready; if not, the status says so too."""
    with _client(args) as client:
        health = client.health()
    if args.json:
        print(health.model_dump_json(exclude_unset=True))
    else:
        print(f"{args.url}: {health.status}, {health.queue.get('depth')} jobs waiting")
        for name, model in health.models.items():
            facts = [str(model[key]) for key in ("device", "dtype", "profile", "licence", "error") if model.get(key)]
            print(f"  {name}: {', '.join([str(model.get('status')), *facts])}")
    return 0 if health.status == "ready" else FAILED


def _client(args: argparse.Namespace, retry_s: float = 30) -> CutoutClient:
    try:
        return CutoutClient(args.url, os.environ.get("CUTOUT_API_KEY") or None, retry_s=retry_s)
    except ValueError as exc:
        raise InputError([str(exc)]) from exc
