"""What the directories of a TIFF ask of its decoder, read without unpacking what they hold.

Source: TIFF 6.0 (Adobe, 1992), section 2: header and image file directories; BigTIFF: the same with 8-byte offsets.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import SourceNotAnImage, SourceTooLarge

#: Numbers in all directories, 2 for each strip or tile. Pillow makes an object of each (3 us, up to 190 bytes).
NUMBERS = 200_000
DIRECTORIES = 64

#: Bytes of a value of each type of more than one byte. Text and raw bytes stay whole in Pillow and cost nothing.
_NUMBER_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
#: Tags that lead to other directories: SubIFDs, EXIF, GPS, interoperability.
_POINTERS = frozenset((330, 34665, 34853, 40965))
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323
_BYTE_COUNTS = frozenset((279, 325))


@dataclass(frozen=True)
class _Entry:
    """`count` values of a type, beginning at `offset` of the file."""

    tag: int
    kind: int
    count: int
    offset: int

    @property
    def size(self) -> int:
        return self.count * _NUMBER_BYTES.get(self.kind, 1)


def check_tiff(data: bytes, *, pixel_limit: int) -> None:
    """Refuse a TIFF that asks for more work than a picture of `pixel_limit` pixels can need.

    Raises:
        SourceNotAnImage: more directories or numbers than any picture has, or strips that overlap.
        SourceTooLarge: tiles of far more pixels than the limit, each of which is unpacked whole.
    """
    tiff = _Tiff(data)
    _check_directories(tiff)
    entries = list(tiff.entries(tiff.first))
    _check_tiles(tiff, entries, pixel_limit)
    _check_byte_counts(tiff, entries)


class _Tiff:
    """A TIFF or BigTIFF of which as much is read as is there: decoders, too, go on with what they have."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self._big = data[2:4] in (b"\x2b\x00", b"\x00\x2b")
        self._entry = struct.Struct(self._order + ("HHQQ" if self._big else "HHII"))
        self._count = struct.Struct(self._order + ("Q" if self._big else "H"))
        self.first = self._unpack(struct.Struct(self._order + ("Q" if self._big else "I")), 8 if self._big else 4)

    def entries(self, directory: int) -> Iterator[_Entry]:
        """The entries of the directory at this offset."""
        begin = directory + self._count.size
        field = self._entry.size - (8 if self._big else 4)  # where in an entry its value is, or its offset
        count = min(self._unpack(self._count, directory), max(0, len(self.data) - begin) // self._entry.size)
        for at in range(begin, begin + count * self._entry.size, self._entry.size):
            entry = _Entry(*self._entry.unpack_from(self.data, at))
            fits = entry.size <= self._entry.size - field
            yield _Entry(entry.tag, entry.kind, entry.count, at + field) if fits else entry

    def numbers(self, entry: _Entry) -> npt.NDArray[np.uint64]:
        """An entry's values as far as the file goes; none when they are no integers. Negative ones become huge."""
        if entry.kind not in _INTEGERS:
            return np.empty(0, np.uint64)
        kind = np.dtype(self._order + _INTEGERS[entry.kind])
        count = min(entry.count, max(0, len(self.data) - entry.offset) // kind.itemsize)
        if not count:
            return np.empty(0, np.uint64)
        return np.frombuffer(self.data, kind, count, entry.offset).astype(np.uint64)

    def _unpack(self, form: struct.Struct, offset: int) -> int:
        return int(form.unpack_from(self.data, offset)[0]) if offset + form.size <= len(self.data) else 0


def _check_directories(tiff: _Tiff) -> None:
    numbers, seen, waiting = 0, set[int](), [tiff.first]
    while waiting:
        directory = waiting.pop()
        if directory in seen:
            continue
        seen.add(directory)
        for entry in tiff.entries(directory):
            numbers += 1
            if entry.kind in _NUMBER_BYTES and entry.size <= len(tiff.data):  # Pillow skips what is larger
                numbers += entry.count
            if entry.tag in _POINTERS:
                waiting.extend(int(offset) for offset in tiff.numbers(entry)[: DIRECTORIES + 1])
            if numbers > NUMBERS or len(seen) + len(waiting) > NUMBERS:
                raise SourceNotAnImage("the source is a TIFF with more numbers than any picture; it was not decoded")
        if len(seen) > DIRECTORIES:
            raise SourceNotAnImage("the source is a TIFF with more directories than any picture; it was not decoded")


def _check_tiles(tiff: _Tiff, entries: list[_Entry], pixel_limit: int) -> None:
    largest = dict.fromkeys((_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT), 0)
    for entry in entries:
        if entry.tag in largest:
            # A tag may come twice, and decoders need not agree on which of them counts.
            largest[entry.tag] = max(largest[entry.tag], *map(int, tiff.numbers(entry)[:1]), 0)
    width, height, tile_width, tile_height = largest.values()
    if not tile_width or not tile_height:
        return
    padded = -(-width // tile_width) * tile_width * (-(-height // tile_height) * tile_height)
    if padded > 2 * pixel_limit + 2**20:  # a picture at the limit may well have half-empty tiles at its edges
        raise SourceTooLarge(
            f"the tiles of the source hold {padded / 1e6:.1f} million pixels; "
            f"the limit is {pixel_limit / 1e6:g} (PIXEL_LIMIT_MP)"
        )


def _check_byte_counts(tiff: _Tiff, entries: list[_Entry]) -> None:
    """Each strip is copied before it is unpacked; overlapping ones turn a small file into terabytes."""
    for entry in entries:
        if entry.tag in _BYTE_COUNTS and entry.count > 1:  # one wrong count is common in old files, and harmless
            counts = np.minimum(tiff.numbers(entry), np.uint64(len(tiff.data)))
            if int(counts.sum()) > 16 * len(tiff.data) + 2**24:
                raise SourceNotAnImage("the source is a TIFF whose strips overlap; it was not decoded")
