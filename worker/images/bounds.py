"""How much work a file may ask of a decoder, checked before one sees it.

The size in a header bounds the pixels, not the work: a JPEG of 400 kB can ask for 64 megapixels a hundred times over
(a scan is a pass over the whole picture), a TIFF of 2 MB can unpack a tile of 2 GB for a picture of 16 pixels, and a
file of a million empty chunks keeps Pillow, which reads them one by one, busy for half a minute. Each limit is far
above what programs write.
"""

import io
import re

from shared.errors import SourceNotAnImage
from worker.images.tiff import check_tiff

#: Progressive files have about 10 scans, never more than 64 useful ones. At 64 megapixels one costs about 55 ms.
SCANS = 100
#: Segments of a JPEG beside its scans: 255 of a colour profile, some of metadata.
SEGMENTS = 4096
#: Bytes of EXIF; a thumbnail of 64 kB is all that is large in it.
EXIF_BYTES = 2**20
#: Calls of read() that a decoder may make for the header, and then for the pixels (BMP's RLE needs one per run).
HEADER_READS = 100_000
PIXEL_READS = 2_000_000

# A marker and its code; fill bytes before it, escaped bytes and restarts inside the pixels are none.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_TEM, _SOI, _EOI, _SOS, _APP1 = 0x01, 0xD8, 0xD9, 0xDA, 0xE1


def check_bounds(data: bytes, *, pixel_limit: int) -> None:
    """Refuse a file whose structure asks for more work than a picture of `pixel_limit` pixels can need.

    It says nothing about files that it does not know or cannot make sense of: that is for decoders.

    Raises:
        SourceNotAnImage: no program writes such a file.
        SourceTooLarge: its tiles hold far more pixels than the limit.
    """
    if data[:3] == b"\xff\xd8\xff":
        _check_jpeg(data)
    elif data[:2] in (b"II", b"MM"):
        check_tiff(data, pixel_limit=pixel_limit)


class MeteredFile(io.BytesIO):
    """A file in memory that can be read only so often: what Pillow reads piece by piece, it reads in Python."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = HEADER_READS

    def begin_pixels(self) -> None:
        """The header is read; from here on the limit for pixels counts."""
        self._reads_left = PIXEL_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise SourceNotAnImage("the source is made of more pieces than any picture; it was not decoded")
        return super().read(size)


def _check_jpeg(data: bytes) -> None:
    # Counting bytes is quick and finds too many rather than too few; only then is every scan looked for.
    in_full = data.count(bytes((0xFF, _SOS))) > SCANS
    at, scans, segments, exif_bytes = 2, 0, 0, 0
    while match := _MARKER.search(data, at):
        at, marker = match.end(), match[1][0]
        if marker == _EOI:
            return
        if marker in (_SOI, _TEM):  # stand alone
            continue
        size = int.from_bytes(data[at : at + 2], "big")
        if marker == _SOS:
            scans += 1
            if not in_full:
                return
        else:
            segments += 1
            if marker == _APP1 and data[at + 2 : at + 8] == b"Exif\0\0":
                exif_bytes += size  # Pillow joins them, and copies all it has for each
        if scans > SCANS or segments > SEGMENTS or exif_bytes > EXIF_BYTES:
            what = "scans" if scans > SCANS else "metadata"
            raise SourceNotAnImage(f"the source is a JPEG with more {what} than any picture; it was not decoded")
        at += max(size, 2)
