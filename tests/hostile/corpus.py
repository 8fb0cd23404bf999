"""Several hundred bad or odd files, each with what must become of it. `python -m tests.hostile.corpus` lists them.

Everything is made here, from seeds: no file lies in git, and each run tries the same ones.
"""

import sys
from collections import Counter
from functools import cache
from pathlib import Path

from tests.hostile import damaged, metadata, odd, oversized, strangers
from tests.hostile.building import Case, Right


@cache
def corpus() -> tuple[Case, ...]:
    """All files, in a fixed order.

    Raises:
        ValueError: two have the same name.
    """
    parts = (damaged, oversized, metadata, odd, strangers)
    found = tuple(case for part in parts for case in part.cases())
    twice = [name for name, count in Counter(case.name for case in found).items() if count > 1]
    if twice:
        raise ValueError(f"two files are called {twice[0]}")
    return found


def main(folder: Path | None) -> None:
    """List the corpus; with a folder, also write its files there."""
    for case in corpus():
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{case.name}.bin").write_bytes(case.data)
        outcome = f"a picture of {case.outcome.size}" if isinstance(case.outcome, Right) else case.outcome or "any"
        print(f"{len(case.data):>9} {case.name:<50} {outcome}")
    print(len(corpus()), "files")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
