"""A small internet of our own, in a network namespace, and the attacks run in it.

    unshare --net --mount python -m tests.hostile.internet      prints one JSON report; needs root, or user namespaces

Every address of attacks.py is on the loopback interface of the namespace, public and forbidden ones alike; a recorder
answers on all of them and notes who was reached; a DNS server of ours answers for the names. Nothing leaves the
namespace, and it ends with the process.
"""

import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import trustme

from shared.errors import AppError
from shared.logs import configure_logging
from shared.settings import load_settings
from tests.hostile.attacks import FORBIDDEN_4, FORBIDDEN_6, LINK_LOCAL_6, NAMES, PUBLIC, PUBLIC_6, attacks
from worker.sources import download

BODY = b"a picture from the public internet"
PORTS = (80, 443, 6379, 8001, 65535)
DNS_ADDRESS = "127.0.0.53"


def prepare_namespace(folder: Path) -> None:
    """Addresses, routes and the resolver's files of this namespace.

    Raises:
        CalledProcessError: the kernel does not allow it.
    """
    _ip("link", "set", "lo", "up")
    for address in (PUBLIC, *FORBIDDEN_4):
        if not address.startswith("127."):
            _ip("addr", "add", f"{address}/32", "dev", "lo")
    for address in (PUBLIC_6, LINK_LOCAL_6, *FORBIDDEN_6):
        if address != "::1":
            _ip("addr", "add", f"{address}/128", "dev", "lo", "nodad")
    # Where packets go and none comes back: a cable whose other end nobody looks at.
    _ip("link", "add", "hole", "type", "veth", "peer", "name", "nobody")
    for end in ("hole", "nobody"):
        _ip("link", "set", end, "up")
    _ip("route", "add", "8.8.8.0/24", "dev", "hole")
    for number in range(1, 21):
        _ip("neigh", "add", f"8.8.8.{number}", "lladdr", "02:00:00:00:00:01", "dev", "hole")
    files = {
        "/etc/resolv.conf": f"nameserver {DNS_ADDRESS}\noptions timeout:1 attempts:1\n",
        "/etc/nsswitch.conf": "hosts: files dns\n",
        "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    }
    for path, text in files.items():
        own = folder / Path(path).name
        own.write_text(text)
        subprocess.run(["mount", "--bind", str(own), os.path.realpath(path)], check=True, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Recorder:
    """Answers on every address of the namespace and counts the connections to each."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.reached: Counter[str] = Counter()
        self.requests: list[bytes] = []
        self._context = context
        self._lock = threading.Lock()
        for port in PORTS:
            for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                listener = socket.create_server((host, port), family=family, backlog=128)
                threading.Thread(target=self._listen, args=(listener, port), daemon=True).start()

    def _listen(self, listener: socket.socket, port: int) -> None:
        while True:
            connection, _ = listener.accept()
            with self._lock:
                self.reached[connection.getsockname()[0].partition("%")[0]] += 1
            threading.Thread(target=self._serve, args=(connection, port), daemon=True).start()

    def _serve(self, connection: socket.socket, port: int) -> None:
        try:
            connection.settimeout(5)
            with self._context.wrap_socket(connection, server_side=True) if port == 443 else connection as stream:
                request = b""
                while b"\r\n\r\n" not in request and (part := stream.recv(4096)):
                    request += part
                with self._lock:
                    self.requests.append(request)
                if request:
                    stream.sendall(answer(request.split(b" ")[1].decode()))
        except OSError:
            return


def answer(path: str) -> bytes:
    """What the servers of this internet say; redirects are /to/<url>."""
    kind, _, rest = path[1:].partition("/")
    location = b"Location: http://10.0.0.5/good"
    if kind == "to":
        return _reply(302, "Location: " + unquote(rest))
    if kind == "status":
        return _reply(int(rest), location.decode())
    if kind == "refresh":
        return _reply(202, "Refresh: 0; url=http://10.0.0.5/good")
    if kind in ("self", "loop"):
        return _reply(302, f"Location: {path}")
    if kind == "last":
        hops = int(rest or "0")
        return _reply(302, f"Location: /last/{hops + 1}" if hops < 5 else "Location: http://public.test:99999/?secret")
    if kind == "two":
        return _reply(302, "Location: http://10.0.0.5/good", "Location: http://192.168.1.1/good")
    if kind == "newline":
        return _reply(302, "Location: http://10.0.0.5/\r\n good")
    return _reply(200)


def _reply(status: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *headers, "Set-Cookie: seen=1; Path=/", f"Content-Length: {len(BODY)}", "", ""]
    return "\r\n".join(lines).encode("latin-1", "replace") + BODY


class NameServer:
    """DNS over UDP for attacks.NAMES; a name with "|" answers differently each time it is asked."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((DNS_ADDRESS, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(512)
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode("latin-1"))
                at += 1 + query[at]
            name, kind = ".".join(labels).lower(), struct.unpack_from(">H", query, at + 1)[0]
            question = query[12 : at + 5]
            self.asked[f"{name} {kind}"] += 1
            if name != "silent.test":
                self._socket.sendto(self._answer(query[:2], question, name, kind), client)

    def _answer(self, number: bytes, question: bytes, name: str, kind: int) -> bytes:
        turns = NAMES.get(name, "").split("|")
        answers = turns[min(self.asked[f"{name} {kind}"], len(turns)) - 1].split(",")
        records = []
        if answers[0].startswith("="):
            alias = b"".join(bytes((len(part),)) + part.encode() for part in answers[0][1:].split(".")) + b"\0"
            records.append(b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 0, len(alias)) + alias)
            target = b"\xc0" + bytes((12 + len(question) + 12,))
            answers = NAMES[answers[0][1:]].split(",")
        else:
            target = b"\xc0\x0c"
        for address in filter(None, answers):
            family, wanted = (socket.AF_INET6, 28) if ":" in address else (socket.AF_INET, 1)
            if kind == wanted:
                data = socket.inet_pton(family, address)
                records.append(target + struct.pack(">HHIH", kind, 1, 0, len(data)) + data)
        found = 0 if name in NAMES else 3  # NXDOMAIN
        head = number + struct.pack(">HHHHH", 0x8180 | found, 1, len(records), 0, 0)
        return head + question + b"".join(records)


def run_attacks() -> dict[str, Any]:
    """What became of each attack: its code (None for a picture) and how long it took (s)."""
    settings = load_settings(download_timeout_s=3, download_connect_timeout_s=0.5)
    configure_logging(settings)  # to stderr: stdout is for the report
    found = {}
    for attack in attacks():
        started = time.monotonic()
        try:
            code = None if download(attack.url, settings) == BODY else "another body"
            detail = ""
        except AppError as exc:
            code, detail = exc.code, exc.message
        except BaseException as exc:
            code, detail = f"raised {type(exc).__name__}", str(exc)
        found[attack.name] = {"code": code, "detail": detail, "seconds": round(time.monotonic() - started, 2)}
    return found


def knock(addresses: Iterable[str]) -> list[str]:
    """The addresses that accept a connection, to prove that the recorder was listening there."""
    answering = []
    for address in addresses:
        scoped = f"{address}%lo" if address.startswith("fe80") else address
        family, _, _, _, entry = socket.getaddrinfo(scoped, 80, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(2)
            if connection.connect_ex(entry) == 0:
                answering.append(address)
    return answering


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_namespace(folder)
        if "--probe" in sys.argv:
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("public.test").configure_cert(context)
        recorder, names = Recorder(context), NameServer()
        outcomes = run_attacks()
        reached = dict(recorder.reached)
        requests = [request.decode("latin-1") for request in recorder.requests]
        answering = knock((*FORBIDDEN_4, *FORBIDDEN_6, LINK_LOCAL_6))
    report = {"outcomes": outcomes, "reached": reached, "requests": requests, "asked": names.asked}
    print(json.dumps({**report, "answering": answering}))


if __name__ == "__main__":
    main()
