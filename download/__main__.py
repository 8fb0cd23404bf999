"""Command line of the model cache: `make download-models` and `make check-cache`.

Exit status: 0 done or complete; 1 something is missing or could not be downloaded; 2 the settings or the command line
are wrong; 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence

from download.check import check
from download.manifest import PublishedModel, selected_models
from shared.errors import FatalError
from shared.settings import Settings, load_settings


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m download",
        description="Download the published weights of the models in MODELS, or check what is already there.",
    )
    parser.add_argument("--check", action="store_true", help="download nothing; print a table of the model cache")
    parser.add_argument("--deep", action="store_true", help="hash the files instead of trusting size and header")
    return parser.parse_args(argv)


def _download(models: Sequence[PublishedModel], settings: Settings, *, deep: bool) -> bool:
    """Fetch one model after the other; a refused one does not keep the others from coming. True when all are there."""
    # Here, not above: a check must not wait for the hub's library to load, nor need it installed.
    from download.fetch import DownloadError, HubUnreachableError, fetch

    failed: list[str] = []
    for done, model in enumerate(models, start=1):
        try:
            fetch(model, settings, deep=deep)
        except DownloadError as exc:
            print(f"error: {exc}", file=sys.stderr)
            failed.append(model.name)
            if isinstance(exc, HubUnreachableError):
                failed += [f"{later.name} (not tried)" for later in models[done:]]
                break
    if failed:
        print(f"Not complete: {', '.join(failed)}. make check-cache shows what is there.", file=sys.stderr)
    return not failed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is described at the top of this file."""
    arguments = _parse(argv)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # lines keep their place among the bars
    try:
        settings = load_settings()
        if arguments.check:
            return 0 if check(settings, deep=arguments.deep) else 1
        return 0 if _download(selected_models(settings), settings, deep=arguments.deep) else 1
    except FatalError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; run make download-models again, it goes on where it stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
