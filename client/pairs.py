"""Which designs to do: from a folder or a CSV file to pairs of pictures, with every mistake named at once."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: In the order in which they are reported.
SIDES = ("front", "back")
#: Suffixes of the formats that the service reads.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif"})
COLUMNS = ("id", "front", "back", "options")

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,15}")
#: Largest integer that every JSON reader keeps exactly; longer ids stay strings.
_INTEGER_LIMIT = 2**53
#: `NAME_front`, `NAME-front`.
_NAMED = re.compile(r"(?P<name>.+)[_-](?P<side>front|back)", re.IGNORECASE)
#: Room for the hash behind a name that had to be changed.
_NAME_LIMIT = 55


class InputError(Exception):
    """The folder, the CSV file or an option cannot be used; nothing was sent.

    Attributes:
        problems: one sentence for each mistake.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Pair:
    """One design: a front, a back, or both.

    Attributes:
        id: the job's id, and what its files' names begin with.
        front, back: a file, or an http(s) URL or data: URI.
        options: of this pair alone.
    """

    id: int | str
    front: Path | str | None = None
    back: Path | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sides(self) -> dict[str, Path | str]:
        """The sides that are given, in reporting order."""
        given = {"front": self.front, "back": self.back}
        return {side: picture for side, picture in given.items() if picture is not None}


def read_id(text: str) -> int | str:
    """The id that a text stands for: a whole number is one, as in the service's forms.

    Raises:
        ValueError: it is no id.
    """
    if _INTEGER.fullmatch(text) and abs(int(text)) <= _INTEGER_LIMIT:
        return int(text)
    if _ID.fullmatch(text):
        return text
    raise ValueError(f"id {text[:100]!r} is not 1-64 of A-Z a-z 0-9 _ -")


def name_to_id(name: str) -> int | str:
    """An id for any name: what no id may contain becomes `-`, and a short hash keeps such names apart."""
    if _ID.fullmatch(name):
        return read_id(name)
    plain = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:_NAME_LIMIT] or "design"
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


# --- a folder -----------------------------------------------------------------------------------------------------
def find_pairs(folder: Path) -> tuple[list[Pair], list[Path]]:
    """The pairs in a folder: `NAME_front.*` and `NAME_back.*`, `NAME-front.*`, or a sub-folder `NAME/` with `front.*`.

    One side alone is a pair too. Upper and lower case of `front`, `back` and the suffix do not matter.

    Returns:
        The pairs by name, and the pictures that belong to none.
    Raises:
        InputError: there is nothing to do, or a side is there twice.
    """
    if not folder.is_dir():
        raise InputError([f"there is no folder {folder}"])
    found: dict[str, dict[str, Path]] = {}
    others: list[Path] = []
    problems: list[str] = []
    for path in _pictures(folder):
        name, side = _name_and_side(path, folder)
        if not side:
            others.append(path)
        elif side in (sides := found.setdefault(name, {})):
            problems.append(f"{path} and {sides[side]} are both the {side} of {name!r}")
        else:
            sides[side] = path
    if problems:
        raise InputError(problems)
    if not found:
        raise InputError([f"{folder} has no pairs: name them NAME_front.png and NAME_back.png, or NAME/front.png"])
    pairs = [Pair(name_to_id(name), sides.get("front"), sides.get("back")) for name, sides in sorted(found.items())]
    return pairs, others


def _pictures(folder: Path) -> Iterator[Path]:
    inside = [*folder.iterdir(), *(path for child in folder.iterdir() if child.is_dir() for path in child.iterdir())]
    for path in sorted(inside):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not is_hidden and path.is_file():
            yield path


def _name_and_side(path: Path, folder: Path) -> tuple[str, str]:
    """The pair and the side that a picture belongs to; ("", "") when to none."""
    if path.parent != folder:
        side = path.stem.lower()
        return (path.parent.name, side) if side in SIDES else ("", "")
    match = _NAMED.fullmatch(path.stem)
    return (match["name"], match["side"].lower()) if match else ("", "")


# --- a CSV file ---------------------------------------------------------------------------------------------------
def read_csv(path: Path) -> list[Pair]:
    """The pairs of a CSV file with the columns id, front, back and options.

    Pictures are URLs or paths (relative to the CSV file's folder), options a JSON object; `;` separates too.

    Raises:
        InputError: every mistake, with its line.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as exc:
        raise InputError([f"{path} cannot be read: {exc.strerror}"]) from exc
    except UnicodeDecodeError as exc:
        raise InputError([f"{path} is not UTF-8; save it as CSV UTF-8"]) from exc
    head = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=";" if "," not in head and ";" in head else ",")
    problems = _column_problems(rows.fieldnames)
    if problems:
        raise InputError(f"{path}, line 1: {problem}" for problem in problems)
    pairs: list[Pair] = []
    lines: dict[str, int] = {}
    try:
        for row in rows:
            line = rows.line_num
            mistakes: list[str] = []
            pair = _read_row(row, path.parent, mistakes)
            if pair is not None:
                first = lines.setdefault(str(pair.id), line)
                if first != line:
                    mistakes.append(f"id {pair.id} is on line {first} already")
                pairs.append(pair)
            problems += [f"{path}, line {line}: {mistake}" for mistake in mistakes]
    except csv.Error as exc:
        problems.append(f"{path}, line {rows.line_num}: {exc}")
    if problems:
        raise InputError(problems)
    if not pairs:
        raise InputError([f"{path} has no rows"])
    return pairs


def _column_problems(columns: Iterable[str] | None) -> list[str]:
    names = list(columns or ())
    problems = [f"unknown column {name!r}; there are {', '.join(COLUMNS)}" for name in names if name not in COLUMNS]
    if "id" not in names:
        problems.append("there is no column id")
    if not {"front", "back"} & set(names):
        problems.append("there is no column front or back")
    if len(set(names)) < len(names):
        problems.append("a column is there twice")
    return problems


def _read_row(row: Mapping[str | Any, Any], folder: Path, mistakes: list[str]) -> Pair | None:
    """The row's pair; None, and what is wrong in `mistakes`, when it has none."""
    if None in row:
        mistakes.append('more cells than columns; write " around text with a separator in it')
        return None
    cells = {name: (value or "").strip() for name, value in row.items()}
    id: int | str = ""
    try:
        id = read_id(cells["id"])
    except ValueError as exc:
        mistakes.append(str(exc))
    sides = {side: _read_picture(side, cells[side], folder, mistakes) for side in SIDES if cells.get(side)}
    if not sides:
        mistakes.append("neither front nor back is given")
    options = _read_options(cells.get("options", ""), mistakes)
    return None if mistakes else Pair(id, sides.get("front"), sides.get("back"), options)


def _read_picture(side: str, text: str, folder: Path, mistakes: list[str]) -> Path | str:
    if is_address(text):
        return text
    path = folder / text
    if not path.is_file():
        mistakes.append(f"{side}: there is no file {path}")
    return path


def _read_options(text: str, mistakes: list[str]) -> dict[str, Any]:
    try:
        return parse_options(text) if text else {}
    except ValueError as exc:
        mistakes.append(f"options: {exc}")
        return {}


def parse_options(text: str) -> dict[str, Any]:
    """Options as a JSON object.

    Raises:
        ValueError: it is something else.
    """
    try:
        options = json.loads(text)
    except ValueError as exc:
        raise ValueError(f"is not JSON: {exc}") from exc
    if not isinstance(options, dict):
        raise ValueError('is not a JSON object such as {"proofs": true}')
    return options


def is_address(text: str) -> bool:
    """Whether a picture is given as an http(s) URL or a data: URI, not as a path."""
    return text.lower().startswith(("http://", "https://", "data:"))
