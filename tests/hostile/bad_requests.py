"""Requests that no client means well with, as bytes for a socket, each with the statuses that may answer it.

Bodies that are deep, long or no text, forms of too many or nameless parts, headers and paths out of every limit, and
what is hardly HTTP. `{output}` and `{events}` in a path stand for those of a job that has ended.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass

from tests.hostile.building import quarters, saved

OUTPUT = '"output":{"front":"http://x.test/a.png"}'
GOOD = f'{{"id":1,{OUTPUT}}}'
FORM = "multipart/form-data; boundary=x"
JSON = "application/json"
ACCEPTED, BAD, FEW, LARGE, WRONG = 202, 400, 404, 413, 422
_SIGNATURE = b"POST /process?wait=false HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@dataclass(frozen=True)
class Attempt:
    """A request, and the statuses that are right for it."""

    name: str
    data: bytes
    statuses: tuple[int, ...]


def attempts() -> tuple[Attempt, ...]:
    """All of them, in a fixed order."""
    return (*_bodies(), *_options(), *_types(), *_forms(), *_headers(), *_paths(), *_framing())


def post(body: str | bytes, kind: str = JSON, headers: str = "", path: str = "/process?wait=false") -> bytes:
    data = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n{headers}"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode("latin-1") + data


def get(path: str, headers: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n".encode("latin-1")


def form(*parts: bytes, boundary: bytes = b"x") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


def field(name: bytes, value: bytes) -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"\r\n\r\n' + value


def file(name: bytes = b"front", filename: bytes = b"a.png", data: bytes = b"", headers: bytes = b"") -> bytes:
    disposition = b'Content-Disposition: form-data; name="' + name + b'"; filename="' + filename + b'"\r\n'
    return disposition + headers + b"\r\n" + (data or saved(quarters(), "PNG"))


def _bodies() -> Iterator[Attempt]:
    def with_id(text: str) -> str:
        return f'{{"id":{text},{OUTPUT}}}'

    def with_front(text: str) -> str:
        return f'{{"id":1,"output":{{"front":{text}}}}}'

    bodies: dict[str, tuple[str | bytes, int]] = {
        "deep-array": ("[" * 200_000, BAD),
        "deep-object": ('{"a":' * 100_000, BAD),
        "integer-of-4301-digits": (with_id("9" * 4301), BAD),
        "integer-of-1-mb": (with_id("9" * 1_000_000), BAD),
        "negative-of-300-digits": (with_id("-" + "9" * 300), WRONG),
        "exponent": (with_id("1e999999"), WRONG),
        "not-a-number": (with_id("NaN"), WRONG),
        "infinity": (with_id("-Infinity"), WRONG),
        "true": (with_id("true"), WRONG),
        "null-character": (with_id('"a\\u0000b"'), WRONG),
        "half-a-surrogate": (with_id('"\\ud800"'), BAD),
        "half-a-surrogate-in-bytes": (with_id('"\ud800"'), BAD),
        "half-a-surrogate-in-a-url": (with_front('"http://x.test/\\udfff"'), BAD),
        "half-a-surrogate-in-a-key": (f'{{"id":1,"\\ud800":1,{OUTPUT}}}', BAD),
        "no-utf-8": (b'{"id":"\xff\xfe"}', BAD),
        "utf-16": (GOOD.encode("utf-16"), BAD),
        "byte-order-mark": (b"\xef\xbb\xbf" + GOOD.encode(), BAD),
        "prototype": (f'{{"id":1,{OUTPUT},"__proto__":{{"a":1}}}}', WRONG),
        "array": ("[1, 2]", WRONG),
        "null": ("null", WRONG),
        "nothing": ("", BAD),
        "more-after-the-end": (GOOD + " x", BAD),
        "200000-keys": (f'{{"id":1,{OUTPUT},' + ",".join(f'"k{i}":1' for i in range(200_000)) + "}", WRONG),
        "key-of-5-mb": (f'{{"id":1,{OUTPUT},"{"k" * 5_000_000}":1}}', WRONG),
        "output-array": ('{"id":1,"output":["http://x.test/a"]}', WRONG),
        "front-number": (with_front("1e308"), WRONG),
        "front-object": (with_front('{"$ref":"#"}'), WRONG),
        "url-of-3-mb": (with_front(f'"http://x.test/{"a" * 3_000_000}"'), WRONG),
        "data-of-no-base64": (with_front(f'"data:image/png;base64,{"!" * 1000}"'), WRONG),
        "data-of-nothing": (with_front('"data:"'), WRONG),
        "data-of-padding": (with_front(f'"data:image/png;base64,{"=" * 3_000_000}"'), WRONG),
        "data-of-parameters": (with_front(f'"data:{";a=b" * 300_000},AAAA"'), ACCEPTED),
    }
    for name, (body, status) in bodies.items():
        yield Attempt(f"body-{name}", post(body), (status,))


def _options() -> Iterator[Attempt]:
    options = {
        "deep": ('{"a":' * 50_000 + "1" + "}" * 50_000, BAD),
        "of-150-arrays": ("[" * 150 + "]" * 150, WRONG),
        "of-100000-models": ('{"models":[' + ",".join(['"rmbg"'] * 100_000) + "]}", WRONG),
        "with-a-model-of-1-mb": (f'{{"models":["{"a" * 1_000_000}"]}}', WRONG),
        "with-models-in-arrays": ('{"models":[[[["rmbg"]]]]}', WRONG),
        "with-a-webhook-array": ('{"webhook":[1]}', WRONG),
        "null": ("null", WRONG),
        "as-text": ('"{}"', WRONG),
    }
    for name, (text, status) in options.items():
        yield Attempt(f"options-{name}", post(f'{{"id":1,{OUTPUT},"options":{text}}}'), (status,))


def _types() -> Iterator[Attempt]:
    kinds = {
        "text/plain": 415,
        "application/x-www-form-urlencoded": 415,
        "multipart/mixed; boundary=x": 415,
        "application/problem+json": 415,
        "": 415,
        "multipart/form-data": BAD,
        "multipart/form-data; boundary=": BAD,
        f"multipart/form-data; boundary={'x' * 5000}": WRONG,
        "application/json; charset=nonsense": ACCEPTED,
        f"application/json;{'a=b;' * 500}": ACCEPTED,
    }
    for number, (kind, status) in enumerate(kinds.items()):
        # Whether it is the form that cannot be read or the fields that are missing is the parser's affair.
        right = (BAD, WRONG) if kind.startswith("multipart/form") else (status,)
        yield Attempt(f"type-{number}", post(GOOD, kind), right)


def _forms() -> Iterator[Attempt]:
    own = field(b"id", b"1")
    forms: dict[str, tuple[tuple[bytes, ...], int]] = {
        "of-100000-parts": ((own, *[field(b"a", b"1")] * 100_000), LARGE),
        "of-17-parts": ((field(b"id", b"1"),) * 17, LARGE),
        "of-50000-files": ((own, *[file(data=b"x")] * 50_000), LARGE),
        "with-two-fronts": ((own, file(), file()), WRONG),
        "with-a-field-of-2-mb": ((own, field(b"front", b"http://" + b"a" * 2_000_000)), LARGE),
        "with-an-id-file": ((file(b"id", b"i", b"1"), file()), WRONG),
        "with-an-arabic-digit": ((field(b"id", "\u0661".encode()), file()), WRONG),
        "with-options-of-20-mb": ((own, file(), file(b"options", b"o", b"[" * 20_000_000)), BAD),
        "with-options-that-are-no-text": ((own, file(), file(b"options", b"o", b"\xff\xfe{}")), BAD),
        "with-a-nameless-part": ((own, b"Content-Disposition: form-data\r\n\r\nx", file()), WRONG),
        "with-a-nameless-file": ((own, b"Content-Disposition: form-data; filename=a\r\n\r\nx", file()), WRONG),
        "with-an-empty-name": ((own, file(b"")), WRONG),
        "with-a-climbing-name": ((own, file(filename=b"../../../etc/passwd")), ACCEPTED),
        "with-a-null-in-a-name": ((own, file(filename=b"a\0.png")), ACCEPTED),
        "with-a-header-of-1-mb": ((own, file(headers=b"X: " + b"a" * 1_000_000 + b"\r\n")), LARGE),
        "in-a-form": ((own, file(data=form(file(), boundary=b"y"))), ACCEPTED),
        "in-another-character-set": ((field(b"_charset_", b"utf-7"), own, file()), WRONG),
        "packed": ((own, file(data=gzip.compress(bytes(10**7)), headers=b"Content-Encoding: gzip\r\n")), ACCEPTED),
        "of-nothing": ((), WRONG),
    }
    for name, (parts, status) in forms.items():
        yield Attempt(f"form-{name}", post(form(*parts), FORM), (status,))
    yield Attempt("form-cut-off", post(form(own, file())[:-40], FORM), (BAD, WRONG))
    yield Attempt("form-of-newlines", post(b"\r\n" * 3_000_000, FORM), (LARGE,))
    for name, part in {"returns": b"\r", "dashes": b"\r\n--", "near-boundaries": b"\r\n--"}.items():
        body = b"--x\r\n" + file(data=part * (6_000_000 // len(part))) + b"\r\n--x--"
        yield Attempt(f"form-of-{name}", post(body, FORM), (WRONG,))


def _headers() -> Iterator[Attempt]:
    headers: list[tuple[str, str, tuple[int, ...]]] = [
        *(("Prefer", value, (ACCEPTED,)) for value in ("wait=" + "9" * 30, "wait=-1", 'wait="5', "," * 8000)),
        *(("Cancel-After", value, (WRONG,)) for value in ("9" * 4000, "\xb2s", "1.5h", "0")),
        *(("Idempotency-Key", value, (WRONG,)) for value in ("\x80\xff", "a" * 256, " ")),
        *(("X-Request-ID", value, (ACCEPTED,)) for value in ("a\tb", "\xff" * 100, "a" * 5000)),
        *(("Authorization", value, (ACCEPTED,)) for value in ("Bearer \xff", "Basic " + "A" * 7000, "Bearer")),
        *((name, "evil.test", (ACCEPTED,)) for name in ("X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-For")),
        ("Accept", "*/*;q=a" * 500, (ACCEPTED,)),
        ("Content-Encoding", "gzip", (ACCEPTED,)),
        ("Cookie", "a=" * 3000, (ACCEPTED,)),
        ("Upgrade", "h2c", (ACCEPTED,)),
        ("Expect", "nothing", (417,)),
    ]
    for number, (name, value, statuses) in enumerate(headers):
        yield Attempt(f"header-{number}-{name}", post(GOOD, headers=f"{name}: {value}\r\n"), statuses)
    ranges = ("bytes=" + "0-1," * 1000 + "0-1", "bytes=9999999999999999999999-", "bytes=-0", "lines=1", "bytes=5-1")
    for number, value in enumerate(ranges):
        for path in ("{output}", "/docs", "/static/app.js"):
            yield Attempt(f"range-{number}-{path}", get(path, f"Range: {value}\r\n"), (200, 206, 416))
    for value in ("\xff", "9" * 4000 + "-1", "-", "1-\xb2"):
        yield Attempt(f"last-event-{value[:4]!r}", get("{events}", f"Last-Event-ID: {value}\r\n"), (WRONG,))


def _paths() -> Iterator[Attempt]:
    jobs = ("%00", "%ff", "..%2f..", "*", "[a-z]*", "x%0aFLUSHALL", "x/events", "0" * 32 + "/events", "a" * 200)
    queries = ("limit=" + "9" * 30, "limit=-1", "limit=%D9%A1", "limit=1e3", "cursor=" + "A" * 3000, "cursor=%00",
               "cursor=MToB", "status=a,b," + "c," * 1500)  # fmt: skip
    files = ("../app.py", "%2e%2e/app.py", "..%2fapp.py", "%00", "app.js%00.png", "..\\app.py")
    found = {
        **{f"/jobs/{path}": (FEW,) for path in jobs},
        **{f"/jobs?{query}": (WRONG,) for query in queries},
        **{f"/static/{path}": (FEW,) for path in files},
        **dict.fromkeys(("/%", "/%zz", "/\xff", "//evil.test/..", "/;/", "*", "/" + "a/" * 1500), (BAD, FEW)),
        "/" + "a" * 9000: (414,),
        "http://evil.test/live": (200, BAD),
    }
    for path, statuses in found.items():
        yield Attempt(f"path-{path[:40]!r}", get(path), statuses)
    for method in ("POST", "DELETE", "PUT", "CONNECT", "TRACE", "PROPFIND", "get", "\0"):
        for path in ("/", "/jobs", "/outputs/x.png", "/process"):
            refused = (BAD, 405) if (method, path) != ("POST", "/process") else (415,)
            yield Attempt(f"method-{method!r}-{path}", get(path, method=method), refused)


def _framing() -> Iterator[Attempt]:
    chunked = _SIGNATURE + b"Transfer-Encoding: chunked\r\n\r\n"
    pieces = {
        "two-lengths": (_SIGNATURE + b"Content-Length: 5\r\nContent-Length: 50\r\n\r\n12345", BAD),
        "length-and-chunks": (
            _SIGNATURE + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n", BAD,
        ),
        "length-negative": (_SIGNATURE + b"Content-Length: -5\r\n\r\n12345", BAD),
        "length-with-a-plus": (_SIGNATURE + b"Content-Length: +5\r\n\r\n12345", BAD),
        "length-of-100-tb": (_SIGNATURE + b"Content-Length: 99999999999999\r\n\r\n12345", LARGE),
        "other-coding": (_SIGNATURE + b"Transfer-Encoding: xchunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n", 501),
        "chunk-that-is-no-number": (chunked + b"zz\r\n12345\r\n0\r\n\r\n", BAD),
        "chunk-negative": (chunked + b"-1\r\n12345\r\n0\r\n\r\n", BAD),
        "chunk-longer-than-it-says": (chunked + b"2\r\n12345\r\n0\r\n\r\n", BAD),
        "chunk-with-a-long-extension": (chunked + b"5;" + b"a" * 100_000 + b"\r\n12345\r\n0\r\n\r\n", BAD),
        "chunks-with-many-trailers": (chunked + b"0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", BAD),
        "old-http": (b"GET /live\r\n\r\n", BAD),
        "http-2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BAD),
        "http-9": (b"GET /live HTTP/9.9\r\n\r\n", BAD),
        "newlines": (b"\r\n" * 2000, BAD),
        "redis": (b"*1\r\n$8\r\nFLUSHALL\r\n", BAD),
        "200-headers": (get("/live", "".join(f"X-{i}: a\r\n" for i in range(200))), 431),
        "header-of-100-kb": (get("/live", f"X: {'a' * 100_000}\r\n"), 431),
        "folded-header": (get("/live", "X: a\r\n b\r\n"), BAD),
        "space-before-the-colon": (get("/live", "X : a\r\n"), BAD),
        "control-characters": (get("/live", "X: \1\0\r\n"), BAD),
    }  # fmt: skip
    for name, (data, status) in pieces.items():
        yield Attempt(f"framing-{name}", data, (status,))
