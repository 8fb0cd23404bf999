"""`cutout` (or `python -m client`): cut out one design, a folder of them or a CSV file, and look after jobs.

cutout process --front front.png --back back.jpg --id 123
cutout folder designs/ --out cutouts --concurrency 8
cutout csv designs.csv --option proofs=true
cutout jobs --status failed
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from client import __version__
from client.errors import FAILED, INTERRUPTED, WRONG_INPUT, CutoutError
from client.pairs import InputError


def main() -> int:
    # INT too: it would stay ignored in a script that starts us in the background.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    return run_command(sys.argv[1:])


def run_command(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit status. Raises SystemExit for wrong arguments and for --help."""
    args = _parser().parse_args(arguments)
    try:
        # Not before: `cutout --help` needs neither requests nor pydantic, which take most of the start.
        from client import commands

        return int(getattr(commands, args.command)(args))
    except InputError as error:
        print("\n".join(f"cutout: {problem}" for problem in error.problems), file=sys.stderr)
        return WRONG_INPUT
    except CutoutError as error:
        print(f"cutout: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # cutout jobs | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cutout",
        description=(__doc__ or "").partition(": ")[2].strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="CUTOUT_URL is the address of the service, CUTOUT_API_KEY the key, where it wants one.",
    )
    parser.add_argument("--version", action="version", version=f"cutout {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help, parents=parents)

    service, work = _service_arguments(), _work_arguments()
    one = add("process", "cut out one design", work, service)
    one.add_argument("--front", metavar="FILE", help="picture of the front: a file or a URL")
    one.add_argument("--back", metavar="FILE", help="picture of the back: a file or a URL")
    one.add_argument("--id", help="your id of the design (default: the file's name)")
    many = add("folder", "cut out the pairs of a folder: NAME_front.* and NAME_back.*, or NAME/front.*", work, service)
    many.add_argument("folder", type=Path, metavar="DIR")
    rows = add("csv", "cut out the rows of a CSV file with the columns id, front, back, options", work, service)
    rows.add_argument("file", type=Path, metavar="FILE")
    jobs = add("jobs", "list jobs, newest first", service)
    jobs.add_argument("--status", action="append", default=[], help="only these: queued, failed, ...; repeatable")
    jobs.add_argument("--id", help="only those with this id of yours")
    jobs.add_argument("--limit", type=_count, default=50, metavar="N", help="at most so many (default: 50)")
    cancel = add("cancel", "stop jobs; finished cells stay", service)
    cancel.add_argument("job_id", nargs="+", metavar="JOB_ID")
    add("health", "show whether the service is ready", service)
    return parser


def _service_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    url = os.environ.get("CUTOUT_URL") or "http://127.0.0.1:8001"
    parser.add_argument("--url", default=url, help="address of the service (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON for machines, and no progress")
    return parser


def _work_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    add("--out", type=Path, default=Path("cutouts"), metavar="DIR", help="for files and report (default: %(default)s)")
    add("--concurrency", type=_count, default=4, metavar="N", help="pairs at the same time (default: %(default)s)")
    add("--models", metavar="A,B", help="models to use (default: all of the service)")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="as holes=auto, print.dpi=150; repeatable")
    add("--options", metavar="JSON", help='options as JSON, as {"proofs": true}')
    add(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="do only what is missing, has changed or has failed (the default), or everything again",
    )
    add("--fresh", action="store_true", help="compute anew what the service has in its cache")
    add("--cancel-after", type=_count, metavar="S", help="give up jobs that have not ended after S seconds")
    add("--retry-s", type=_count, default=600, metavar="S", help="patience with a busy service (default: %(default)s)")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
