"""Colour profiles and PNGs, deep or lying ones, that no library here writes, byte by byte.

Source: ICC.1:2010 (profile version 4.3): header (7.2), tag table (7.3), curveType (10.5), lut8Type (10.9); PNG
specification, third edition: IHDR and tRNS (11.2.1, 11.3.1.1).
"""

import itertools
import struct
import zlib
from typing import Any

import numpy as np

_D50 = struct.pack(">3i", 63190, 65536, 54061)  # s15Fixed16 of 0.9642, 1, 0.8249


def cmyk_profile() -> bytes:
    """A press whose cyan plate prints magenta and the other way round: Lab = f(C, M, Y, K), two points per ink."""
    white, black = np.array([100.0, 0, 0]), np.array([0.0, 0, 0])
    inks = {"c": np.array([48.0, 74, -3]), "m": np.array([55.0, -37, -50]), "y": np.array([89.0, -5, 93])}
    points = bytearray()
    for c, m, y, k in itertools.product((0, 1), repeat=4):
        used = [inks[name] for name, on in zip("cmy", (c, m, y), strict=True) if on]
        lab = white if not used else np.mean(used, axis=0) * (1 - 0.3 * (len(used) - 1))
        lab = black if k else lab
        points += bytes([round(lab[0] * 2.55), round(lab[1] + 128), round(lab[2] + 128)])
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + bytes(points) + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut})


def linear_grey_profile() -> bytes:
    """Grey of gamma 1."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + bytes(4) + struct.pack(">I", 0)})


def png16(values: np.ndarray[Any, Any], colour_type: int, transparent: bytes = b"") -> bytes:
    """A 16-bit PNG of (H, W, C) uint16; `transparent` is the body of its tRNS chunk."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    chunks += [(b"tRNS", transparent)] if transparent else []
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def bomb_png() -> bytes:
    """A few hundred bytes that declare 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def _profile(kind: bytes, colours: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {
        b"desc": b"mluc" + bytes(4) + struct.pack(">IIHHII", 1, 12, 0x656E, 0x5553, 8, 28) + "test".encode("utf-16-be"),
        b"cprt": b"mluc" + bytes(4) + struct.pack(">IIHHII", 1, 12, 0x656E, 0x5553, 8, 28) + "none".encode("utf-16-be"),
        b"wtpt": b"XYZ " + bytes(4) + _D50,
        **tags,
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x04300000, kind, colours, connection)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(4 + 4 + 4 + 4 + 8 + 4) + _D50
    return header + bytes(128 - len(header)) + table + body
