"""URLs that try to make the downloader reach what it must not, each with the code it must end in.

They are run where every forbidden address answers (internet.py), so that a hole is a connection, not a time-out.
"""

from dataclasses import dataclass

FORBIDDEN = "source_address_forbidden"
UNREACHABLE = "source_unreachable"
TIMEOUT = "source_timeout"

#: Addresses of the attacked namespace that stand for the public internet.
PUBLIC, PUBLIC_6 = "93.184.216.34", "2606:4700::1111"

#: Every kind of address that is nobody's business: the recorder listens on all of them.
FORBIDDEN_4 = (
    *("127.0.0.1", "127.8.8.8", "10.0.0.5", "10.255.255.254", "172.16.0.1", "172.31.255.254", "192.168.1.1"),
    *("169.254.169.254", "169.254.1.1", "100.64.0.1", "100.127.255.254", "192.0.0.8", "192.0.2.1", "198.18.0.1"),
    *("198.51.100.1", "203.0.113.1", "192.88.99.1", "240.0.0.1"),
)
FORBIDDEN_6 = (
    *("::1", "fc00::1", "fd00:ec2::254", "fec0::1", "64:ff9b::a00:5", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:5"),
    *("2002:a00:5::1", "2002:7f00:1::", "2001:0:a00:5::1", "2001:db8::1", "100::1", "5f00::1", "3fff::1"),
)
LINK_LOCAL_6 = "fe80::5"

#: Names of the namespace's own DNS server: what they answer to A and AAAA; "," several at once, "|" one after another.
NAMES = {
    "public.test": PUBLIC,
    "public6.test": PUBLIC_6,
    "private.test": "10.0.0.5",
    "loopback.test": "127.0.0.1",
    "metadata.google.internal": "169.254.169.254",
    "ula.test": "fc00::1",
    "mapped.test": "::ffff:10.0.0.5",
    "nat64.test": "64:ff9b::a00:5",
    "mixed.test": f"{PUBLIC},10.0.0.5",
    "mixed-the-other-way.test": f"10.0.0.5,{PUBLIC}",
    "mixed-families.test": f"{PUBLIC},fc00::1",
    "rebinding.test": f"{PUBLIC}|10.0.0.5",
    "rebinding-at-once.test": f"{PUBLIC}|{PUBLIC}|127.0.0.1",
    "alias.test": "=private.test",
    "xn--mnchen-3ya.test": "10.0.0.5",
    # Nobody answers there, and no packet comes back to say so.
    "dead.test": ",".join(f"8.8.8.{number}" for number in range(1, 21)),
}


@dataclass(frozen=True)
class Attack:
    """A URL and the code it ends in; None: the picture comes, and from a public address."""

    name: str
    url: str
    code: str | None


def attacks() -> tuple[Attack, ...]:
    """All of them, in a fixed order."""
    return (*_controls(), *_addresses(), *_spellings(), *_urls(), *_names(), *_redirects())


def _controls() -> list[Attack]:
    """What must work, or the rest would prove nothing."""
    return [
        Attack("public-address", f"http://{PUBLIC}/good", None),
        Attack("public-address-6", f"http://[{PUBLIC_6}]/good", None),
        Attack("public-name", "http://public.test/good", None),
        Attack("public-name-with-a-dot", "http://public.test./good", None),
        Attack("public-name-6", "http://public6.test/good", None),
        Attack("redirect-to-a-public-name", f"http://{PUBLIC}/to/http://public.test/good", None),
        Attack("mapped-public-address", f"http://[::ffff:{PUBLIC}]/good", None),
    ]


def _addresses() -> list[Attack]:
    found = [Attack(f"address-{text}", f"http://{text}/good", FORBIDDEN) for text in FORBIDDEN_4]
    found += [Attack(f"address-{text}", f"http://[{text}]/good", FORBIDDEN) for text in FORBIDDEN_6]
    found += [
        Attack(f"mapped-{text}", f"http://[::ffff:{text}]/good", FORBIDDEN)
        for text in ("127.0.0.1", "10.0.0.5", "169.254.169.254", "192.168.1.1", "100.64.0.1")
    ]
    found += [
        Attack(f"other-port-{port}", f"http://10.0.0.5:{port}/good", FORBIDDEN) for port in (443, 6379, 8001, 65535)
    ]
    return [
        *found,
        Attack("mapped-in-hexadecimal", "http://[::ffff:7f00:1]/good", FORBIDDEN),
        Attack("mapped-in-full", "http://[0:0:0:0:0:ffff:7f00:0001]/good", FORBIDDEN),
        Attack("compatible", "http://[::127.0.0.1]/good", FORBIDDEN),
        Attack("link-local-6", f"http://[{LINK_LOCAL_6}]/good", FORBIDDEN),
        Attack("link-local-6-with-its-zone", f"http://[{LINK_LOCAL_6}%lo]/good", UNREACHABLE),
        Attack("link-local-6-with-its-zone-escaped", f"http://[{LINK_LOCAL_6}%25lo]/good", UNREACHABLE),
        Attack("unspecified", "http://0.0.0.0/good", FORBIDDEN),
        Attack("unspecified-short", "http://0/good", FORBIDDEN),
        Attack("unspecified-6", "http://[::]/good", FORBIDDEN),
        Attack("unspecified-mapped", "http://[::ffff:0:0]/good", FORBIDDEN),
        Attack("this-network", "http://0.0.0.1/good", FORBIDDEN),
        Attack("broadcast", "http://255.255.255.255/good", FORBIDDEN),
        Attack("multicast", "http://224.0.0.1/good", FORBIDDEN),
        Attack("multicast-6", "http://[ff02::1]/good", FORBIDDEN),
        Attack("tls-to-private", "https://10.0.0.5/good", FORBIDDEN),
    ]


def _spellings() -> list[Attack]:
    """The same addresses as the C library also reads them."""
    spellings = {
        "decimal": "2130706433",
        "decimal-private": "167772165",
        "decimal-metadata": "2852039166",
        "hexadecimal": "0x7f000001",
        "hexadecimal-upper": "0X7F.0X0.0X0.0X1",
        "hexadecimal-metadata": "0xa9fea9fe",
        "octal": "017700000001",
        "octal-dotted": "0177.0.0.1",
        "octal-private": "012.0.0.05",
        "mixed-bases": "0x7f.0.0.01",
        "short": "127.1",
        "shorter": "127.0.1",
        "short-hexadecimal": "0x7f.1",
        "short-private": "10.5",
        "short-metadata": "169.254.43518",
        "zeros-in-front": "127.000.000.001",
        "localhost": "localhost",
        "localhost-in-capitals": "LOCALHOST",
    }
    # What the rules for names in Unicode forbid is no usable URL, whatever other programs make of it.
    unicode = {
        "full-width-digits": "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
        "full-width-dots": "10\u30020\uff0e0\uff615",
        "circled-digits": "\u2460\u2461\u2466.\u2460",
        "mathematical-digits": "\U0001d7cf\U0001d7d0\U0001d7d5.\U0001d7ce.\U0001d7ce.\U0001d7cf",
        "localhost-full-width": "\uff4c\uff4f\uff43alhost",
        "localhost-with-a-dot": "localhost.",
        "overflowing": "4294967296",
        "wrapped-around": "127.0.0.257",
        "five-parts": "127.0.0.0.1",
    }
    return [
        *(Attack(f"spelling-{name}", f"http://{host}/good", FORBIDDEN) for name, host in spellings.items()),
        *(Attack(f"spelling-{name}", f"http://{host}/good", UNREACHABLE) for name, host in unicode.items()),
    ]


def _urls() -> list[Attack]:
    """Tricks of spelling a URL, as a redirect may hold them; the API refuses most before (test_schemas.py)."""
    tricks = {
        "credentials": ("http://user:secret@public.test/good", FORBIDDEN),
        "a-user": ("http://user@public.test/good", FORBIDDEN),
        "empty-credentials": ("http://:@public.test/good", FORBIDDEN),
        "good-at-evil": ("http://public.test@10.0.0.5/good", FORBIDDEN),
        "evil-at-good-escaped": (r"http://10.0.0.5\@public.test/good", FORBIDDEN),
        "good-hash-evil": ("http://public.test#@10.0.0.5/good", None),
        "evil-hash-good": ("http://10.0.0.5#@public.test/good", FORBIDDEN),
        "evil-question-good": ("http://10.0.0.5?@public.test/good", FORBIDDEN),
        "backslash": (r"http://10.0.0.5\.public.test/good", FORBIDDEN),
        "backslashes": (r"http:\\10.0.0.5\good", FORBIDDEN),
        "three-slashes": ("http:///10.0.0.5/good", FORBIDDEN),
        "no-slashes": ("http:10.0.0.5/good", FORBIDDEN),
        "tab-in-the-host": ("http://10.0.\t0.5/good", UNREACHABLE),
        "newline-in-the-host": ("http://10.0.0.5\n/good", UNREACHABLE),
        "space-in-the-host": ("http://public.test 10.0.0.5/good", UNREACHABLE),
        "null-in-the-host": ("http://10.0.0.5\0.public.test/good", UNREACHABLE),
        "escaped-host": ("http://%31%30.0.0.5/good", FORBIDDEN),
        "escaped-slash": ("http://10.0.0.5%2f.public.test/good", UNREACHABLE),
        "two-ports": ("http://10.0.0.5:80:80/good", UNREACHABLE),
        "port-0": ("http://public.test:0/good", FORBIDDEN),
        "port-65536": ("http://public.test:65536/good", UNREACHABLE),
        "port-negative": ("http://public.test:-80/good", UNREACHABLE),
        "port-full-width": ("http://10.0.0.5:\uff18\uff10/good", UNREACHABLE),
        "brackets-without-colons": ("http://[10.0.0.5]/good", UNREACHABLE),
        "brackets-left-open": ("http://[::1/good", UNREACHABLE),
        "brackets-of-the-future": ("http://[v1.10.0.0.5]/good", UNREACHABLE),
        "no-host": ("http:///good", FORBIDDEN),
        "host-of-dots": ("http://../good", UNREACHABLE),
        "host-of-300-letters": (f"http://{'a' * 300}.test/good", UNREACHABLE),
        "file": ("file:///etc/passwd", FORBIDDEN),
        "ftp": ("ftp://10.0.0.5/good", FORBIDDEN),
        "gopher": ("gopher://10.0.0.5:6379/_FLUSHALL", FORBIDDEN),
        "dict": ("dict://10.0.0.5:6379/info", FORBIDDEN),
        "ldap": ("ldap://10.0.0.5/", FORBIDDEN),
        "unix-socket": ("http+unix://%2Fvar%2Frun%2Fdocker.sock/info", FORBIDDEN),
        "jar": ("jar:http://10.0.0.5/good!/", FORBIDDEN),
        "netdoc": ("netdoc:///etc/passwd", FORBIDDEN),
        "data": ("data:image/png;base64,AAAA", FORBIDDEN),
        "javascript": ("javascript:alert(1)", FORBIDDEN),
    }
    return [Attack(f"url-{name}", url, code) for name, (url, code) in tricks.items()]


def _names() -> list[Attack]:
    names = [name for name in NAMES if not name.startswith(("public", "rebinding", "dead"))]
    return [
        *(Attack(f"name-{name}", f"http://{name}/good", FORBIDDEN) for name in names),
        Attack("name-in-unicode", "http://m\u00fcnchen.test/good", FORBIDDEN),
        Attack("name-that-nobody-has", "http://nobody.test/good", UNREACHABLE),
        Attack("name-server-that-is-silent", "http://silent.test/good", UNREACHABLE),
        Attack("name-with-20-dead-addresses", "http://dead.test/good", TIMEOUT),
        # Resolved once: what the name answers the second time is asked for by the next hop only.
        Attack("name-that-changes-its-answer", "http://rebinding.test/good", None),
        Attack("name-that-changes-between-hops", "http://rebinding-at-once.test/loop", FORBIDDEN),
    ]


def _redirects() -> list[Attack]:
    targets = {
        "private": "http://10.0.0.5/good",
        "loopback": "http://127.0.0.1/good",
        "metadata": "http://169.254.169.254/latest/meta-data/",
        "metadata-6": "http://[fd00:ec2::254]/latest/meta-data/",
        "decimal": "http://2130706433/good",
        "private-name": "http://private.test/good",
        "without-a-scheme": "//10.0.0.5/good",
        "tls-to-private": "https://192.168.1.1/good",
        "other-scheme": "file:///etc/passwd",
        "credentials": "http://a:b@public.test/good",
        "by-way-of-another": f"http://{PUBLIC}/to/http:%252f%252f10.0.0.5%252fgood",
    }
    found = [Attack(f"redirect-{name}", f"http://{PUBLIC}/to/{url}", FORBIDDEN) for name, url in targets.items()]
    return [
        *found,
        *(
            Attack(f"redirect-{status}", f"http://{PUBLIC}/status/{status}", FORBIDDEN)
            for status in (301, 303, 307, 308)
        ),
        Attack("redirect-by-refresh", f"http://{PUBLIC}/refresh", UNREACHABLE),
        Attack("redirect-by-300", f"http://{PUBLIC}/status/300", UNREACHABLE),
        Attack("redirect-loop", f"http://{PUBLIC}/self", UNREACHABLE),
        Attack("redirect-to-no-url", f"http://{PUBLIC}/to/http://[", UNREACHABLE),
        Attack("redirect-to-a-wrong-port-at-the-end", f"http://{PUBLIC}/last", UNREACHABLE),
        Attack("redirect-with-two-locations", f"http://{PUBLIC}/two", FORBIDDEN),
        Attack("redirect-with-a-newline", f"http://{PUBLIC}/newline", FORBIDDEN),
    ]
