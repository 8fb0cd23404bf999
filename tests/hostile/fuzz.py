"""Mutations of good files through the decoder: `python -m tests.hostile.fuzz --examples 3000`, or `make fuzz`.

Whatever the bytes, the decoder gives a picture or one of two errors; anything else ends the run with the bytes that did
it. With --coverage the mutations are led by the code they reach (atheris); without, hypothesis makes them from a fixed
seed, so that CI tries the same ones each time.
"""

import argparse
import base64
import contextlib
import re
import struct
import sys
import tempfile
import zlib
from functools import cache
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shared.errors import SourceNotAnImage, SourceTooLarge
from tests.hostile import metadata, odd
from tests.hostile.building import PNG_SIGNATURE
from worker.images import decode

#: Small: what a mutation asks for beyond it is refused, so that examples stay quick.
PIXEL_LIMIT = 1_000_000
_SAMPLE_BYTES = 6000


@cache
def samples() -> tuple[bytes, ...]:
    """Good files to begin with: every format, depth and kind of metadata of the corpus, once."""
    cases = [*odd.cases(), *metadata.cases()]
    return tuple(case.data for case in cases if len(case.data) < _SAMPLE_BYTES)


def try_decode(data: bytes) -> None:
    """Return when the decoder keeps its promise; let every other exception through."""
    try:
        picture = decode(data, pixel_limit=PIXEL_LIMIT)
    except (SourceNotAnImage, SourceTooLarge):
        return
    assert picture.rgb.shape == (picture.height, picture.width, 3)
    assert picture.width * picture.height <= PIXEL_LIMIT
    assert picture.alpha is None or picture.alpha.shape == picture.rgb.shape[:2]


def with_right_sums(data: bytes) -> bytes:
    """A PNG whose chunks' checksums fit again: a mutation that only breaks those gets no further."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    parts, at = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + min(size, len(data))]
        parts += [struct.pack(">I", size), body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + size
    return b"".join(parts)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A good file after a few changes: bytes, numbers, pieces left out, moved, doubled or taken from another file."""
    data = bytearray(draw(st.sampled_from(samples())))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        size = draw(st.integers(1, 64))
        kind = draw(st.sampled_from(("byte", "number", "drop", "double", "splice", "cut")))
        if kind == "byte":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "number":
            value = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)))
            data[at : at + 4] = struct.pack(draw(st.sampled_from(("<I", ">I"))), value)
        elif kind == "drop":
            del data[at : at + size]
        elif kind == "double":
            data[at:at] = data[at : at + size]
        elif kind == "splice":
            other = draw(st.sampled_from(samples()))
            data[at : at + size] = other[at : at + size]
        else:
            del data[at:]
    return with_right_sums(bytes(data)) if draw(st.booleans()) else bytes(data)


def by_hypothesis(examples: int) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # a failing example is shown as it is: shrinking a crash takes longer than reading it
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations())
    def fuzz(data: bytes) -> None:
        tried.append(len(data))
        _guarded(data)

    tried: list[int] = []
    fuzz()
    print(f"{len(tried)} mutations of {len(samples())} files, no crash")


def by_coverage(seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["PIL", "worker.images"]):
        for name in [name for name in sys.modules if re.match(r"PIL\.|worker\.images\.", name)]:
            sys.modules.pop(name)  # loaded above, without the probes
        import worker.images.picture as instrumented

    def fuzz(data: bytes) -> None:
        with contextlib.suppress(SourceNotAnImage, SourceTooLarge):
            instrumented.decode(with_right_sums(data), pixel_limit=PIXEL_LIMIT)

    with tempfile.TemporaryDirectory() as folder:
        # libFuzzer takes its first files from a folder.
        for number, data in enumerate(samples()):
            (Path(folder) / f"{number}").write_bytes(data)
        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-rss_limit_mb=3000", "-timeout=30", folder], fuzz)
        atheris.Fuzz()


def _guarded(data: bytes) -> None:
    try:
        try_decode(data)
    except BaseException:
        print("the file:", base64.b64encode(data).decode(), file=sys.stderr)
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=3000, help="mutations to try")
    parser.add_argument("--coverage", type=int, metavar="SECONDS", help="let atheris lead the mutations for so long")
    options = parser.parse_args()
    if options.coverage:
        by_coverage(options.coverage)
    else:
        by_hypothesis(options.examples)


if __name__ == "__main__":
    main()
