"""`python -m api.keys new NAME`: make an API key. The key is shown once; only its hash goes into API_KEYS."""

import argparse
import re
import secrets
import sys

from api.access import hash_key

#: Says in a log or a leak what it is, so that scanners for secrets can find it.
PREFIX = "cutout_"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def new_key(name: str) -> tuple[str, str]:
    """A fresh key of 256 random bits, and its entry for API_KEYS.

    Raises:
        ValueError: the name has other characters than letters, digits, dot, minus and underscore, or is too long.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: use 1-64 letters, digits, dots, minuses and underscores")
    key = PREFIX + secrets.token_urlsafe(32)
    return key, f"{name}:{hash_key(key)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m api.keys", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="make a key and print it, once")
    new.add_argument("name", help="who uses it; jobs are theirs alone")
    try:
        key, entry = new_key(parser.parse_args().name)
    except ValueError as exc:
        print(exc, file=sys.stderr)
        return 2
    print(f"Key, for the caller (it is shown only now):\n  {key}")
    print(f"Entry for .env, after a comma if there are others; then restart the API:\n  API_KEYS={entry}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
