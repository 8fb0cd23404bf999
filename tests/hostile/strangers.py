"""Files of other kinds, and files of two kinds at once."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator

from PIL import Image

from tests.hostile.building import (
    COLOURS,
    LOSSY,
    NOT_AN_IMAGE,
    Case,
    Right,
    chunk,
    jpeg,
    quarters,
    saved,
    segment,
    simple_png,
)

RIGHT = Right((48, 32), COLOURS)
LOSSY_RIGHT = Right((48, 32), COLOURS, LOSSY)
SCRIPT = b"<html><body><script>alert(document.cookie)</script></body></html>"


def cases() -> Iterator[Case]:
    for name, data in (_documents() | _programs() | _drawings() | _fragments()).items():
        yield Case(f"stranger-{name}", data, NOT_AN_IMAGE)
    yield from _other_pictures()
    yield from _polyglots()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("Evil.class", b"\xca\xfe\xba\xbe" + bytes(50))
    return file.getvalue()


def _documents() -> dict[str, bytes]:
    tape = io.BytesIO()
    with tarfile.open(fileobj=tape, mode="w") as packed:
        packed.addfile(tarfile.TarInfo("front.png"))
    return {
        "text": b"just some text, named front.png",
        "utf-16-text": "Zürich".encode("utf-16"),
        "html": b"<!DOCTYPE html>" + SCRIPT,
        "json": b'{"front": "front.png"}',
        "xml": b"<?xml version='1.0'?><!DOCTYPE r [<!ENTITY a 'b'>]><r>&a;</r>",
        "zip": archive(),
        "tar": tape.getvalue(),
        "gzip": gzip.compress(saved(quarters(), "PNG"), mtime=0),
        "pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog /OpenAction << /S /JavaScript >> >>\nendobj\n%%EOF",
        "postscript": b"%!PS-Adobe-3.0\n(/etc/passwd) (r) file 1000 string readstring pop print showpage",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n%pipe%id\nshowpage",
        "dos-eps": b"\xc5\xd0\xd3\xc6" + struct.pack("<III", 32, 10, 0) + bytes(60),
        "rtf": rb"{\rtf1 hello}",
        "csv": b"id,front\n1,front.png\n",
        "pickle": pickle.dumps({"front": 1}),
        "php": b"<?php system($_GET['c']); ?>",
    }


def _programs() -> dict[str, bytes]:
    return {
        "elf": b"\x7fELF\x02\x01\x01" + bytes(200),
        "windows": b"MZ" + bytes(58) + b"\x80\0\0\0" + bytes(64) + b"PE\0\0" + bytes(100),
        "java": b"\xca\xfe\xba\xbe\0\0\0\x41" + bytes(80),
        "wasm": b"\0asm\1\0\0\0" + bytes(40),
        "shell": b"#!/bin/sh\nrm -rf /\n",
        "mp4": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(200),
        "mp3": b"ID3\x04\0\0\0\0\0\x21" + bytes(200),
        "wav": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0" + bytes(40),
        "avi": b"RIFF\x24\0\0\0AVI LIST" + bytes(40),
        "font": b"\0\1\0\0\0\x0a" + bytes(100),
        "sqlite": b"SQLite format 3\0" + bytes(100),
    }


def _drawings() -> dict[str, bytes]:
    """SVG is a program that fetches; none of it is read."""
    entity = b'<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    lol = b'<!DOCTYPE svg [<!ENTITY a "ha">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(9)
    )
    head = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">'
    return {
        "svg": head + b'<rect width="9" height="9" fill="red"/></svg>',
        "svg-with-an-external-entity": b'<?xml version="1.0"?>' + entity + head + b"<text>&x;</text></svg>",
        "svg-with-a-billion-laughs": lol + b"]>" + head + b"<text>&j;</text></svg>",
        "svg-with-a-script": head + b"<script>fetch('http://169.254.169.254/')</script></svg>",
        "svg-with-a-remote-image": head + b'<image href="http://169.254.169.254/latest"/></svg>',
        "svg-of-60000-pixels": b'<svg xmlns="http://www.w3.org/2000/svg" width="60000" height="60000"/>',
        "svg-packed": gzip.compress(head + b"</svg>", mtime=0),
        "imagemagick-msl": b"<?xml version='1.0'?><image><read filename='/etc/passwd'/></image>",
        "imagemagick-mvg": b"push graphic-context\nfill 'url(https://example.com/\"|id\")'\npop graphic-context",
    }


def _fragments() -> dict[str, bytes]:
    return {
        "empty": b"",
        "null": b"\0",
        "one-byte": b"\xff",
        "newline": b"\n",
        "nulls": bytes(10_000),
        "ones": b"\xff" * 10_000,
        "png-signature": b"\x89PNG\r\n\x1a\n",
        "jpeg-signature": b"\xff\xd8\xff",
        "gif-signature": b"GIF89a",
        "webp-signature": b"RIFF\x04\0\0\0WEBP",
        "bmp-signature": b"BM",
        "tiff-signature": b"MM\0*",
        "avif-signature": b"\0\0\0\x0cftypavif",
        "png-signature-twice": b"\x89PNG\r\n\x1a\n" * 2,
        "space-before-a-png": b" " + saved(quarters(), "PNG"),
        "mark-before-a-png": b"\xef\xbb\xbf" + saved(quarters(), "PNG"),
    }


def _other_pictures() -> Iterator[Case]:
    """Formats that Pillow could read: each is attack surface that no print shop needs."""
    for form in ("PPM", "TGA", "PCX", "SGI", "ICO", "ICNS", "DDS", "JPEG2000", "EPS", "QOI", "BLP", "SPIDER"):
        image = quarters(64, 64)
        image = image.convert("L").convert("F") if form == "SPIDER" else image.convert("P") if form == "BLP" else image
        yield Case(f"other-format-{form.lower()}", saved(image, form), NOT_AN_IMAGE)
    yield Case(
        "other-format-psd", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(100), NOT_AN_IMAGE
    )
    heic = saved(Image.new("RGB", (9, 9)), "AVIF", speed=10).replace(b"avif", b"heic").replace(b"mif1", b"heix")
    yield Case("other-format-heic", heic, NOT_AN_IMAGE)


def _polyglots() -> Iterator[Case]:
    """Two kinds in one file: the picture comes out, and nothing of the other kind does."""
    png, photo, animation = saved(quarters(), "PNG"), jpeg(), saved(quarters(), "GIF")
    webp, bitmap = saved(quarters(), "WEBP", lossless=True), saved(quarters(), "BMP")
    yield Case("polyglot-gif-and-java-archive", animation + archive(), RIGHT)
    yield Case("polyglot-jpeg-and-zip", photo + archive(), LOSSY_RIGHT)
    yield Case("polyglot-png-and-zip", png + archive(), RIGHT)
    yield Case("polyglot-png-with-html-in-a-comment", simple_png(chunk(b"tEXt", b"Comment\0" + SCRIPT)), RIGHT)
    yield Case("polyglot-png-with-html-first", simple_png(chunk(b"htMl", SCRIPT)), RIGHT)
    yield Case("polyglot-png-and-html", png + SCRIPT, RIGHT)
    yield Case("polyglot-jpeg-with-html-in-a-comment", jpeg(segment(0xFE, SCRIPT)), LOSSY_RIGHT)
    yield Case("polyglot-jpeg-with-php-in-exif", jpeg(segment(0xE1, b"Exif\0\0<?php system('id'); ?>")), LOSSY_RIGHT)
    yield Case(
        "polyglot-jpeg-and-pdf", jpeg(segment(0xFE, b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n")) + b"%%EOF", LOSSY_RIGHT
    )
    yield Case("polyglot-pdf-and-jpeg", b"%PDF-1.7\n" + photo, NOT_AN_IMAGE)
    yield Case("polyglot-html-and-png", SCRIPT + png, NOT_AN_IMAGE)
    yield Case("polyglot-gif-and-script", animation + b"/*" + b"*/=1;alert(1)", RIGHT)
    yield Case("polyglot-webp-with-html", webp + SCRIPT, None)
    yield Case("polyglot-bmp-and-script", bitmap + b"*/=1;alert(1)//", RIGHT)
    yield Case("polyglot-tiff-and-html", saved(quarters(), "TIFF") + SCRIPT, RIGHT)
    yield Case("polyglot-gif-and-png", animation + png, RIGHT)
