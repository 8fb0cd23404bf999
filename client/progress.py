"""How a run shows how far it is: a bar on a terminal, a line for each pair elsewhere, nothing for machines."""

import sys
import threading
from collections import Counter
from typing import Any, Literal

from client.batch import Outcome

Style = Literal["bar", "lines", "silent"]


class Progress:
    """Counts cells on the bar, and says how each pair ended. Safe to share between threads."""

    def __init__(self, style: Style, cells: dict[str, int]) -> None:
        """`cells`: for each pair, by its id as text, how many it has."""
        self._cells, self._seen = cells, Counter[str]()
        self._finished = 0
        self._style = style
        self._lock = threading.Lock()
        self._bar: Any = None
        if style == "bar":
            from tqdm import tqdm

            self._bar = tqdm(total=sum(cells.values()), unit="cell", file=sys.stderr, dynamic_ncols=True)

    def cells_done(self, id: int | str, done: int) -> None:
        """A pair has this many finished cells."""
        with self._lock:
            grown = min(done, self._cells[str(id)]) - self._seen[str(id)]
            if grown > 0:
                self._seen[str(id)] += grown
                if self._bar is not None:
                    self._bar.update(grown)

    def pair_done(self, outcome: Outcome) -> None:
        """A pair has ended: its cells count, whether they were made or not."""
        self.cells_done(outcome.pair.id, self._cells[str(outcome.pair.id)])
        self._finished += 1
        if self._style == "lines":
            print(f"[{self._finished}/{len(self._cells)}] {_sentence(outcome)}", file=sys.stderr, flush=True)
        elif self._bar is not None and not outcome.is_good:
            self._bar.write(_sentence(outcome), file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _sentence(outcome: Outcome) -> str:
    if outcome.is_kept:
        return f"{outcome.pair.id}: was done already"
    made = sum(row.status == "succeeded" for row in outcome.rows)
    text = f"{outcome.pair.id}: {outcome.status}, {made} cutouts, {outcome.seconds:.1f} s"
    errors = {f"{row.error_code} ({row.error_detail})": None for row in outcome.rows if row.error_code}
    return "; ".join([text, *errors])
