"""`make test-gemini`: one real call to Gemini with a drawn photograph of a printed shirt; skips without a key.

Not part of the suite: it needs the network, costs money, and its answer is another one each time. It shows that key,
model and prompt work together, and leaves photograph and answer in outputs/ for the eye.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.mockups import load_designs, mockup
from shared.errors import ExtractionError, FatalError
from shared.local.redis_server import RedisServer, find_redis_server
from shared.settings import load_settings
from shared.store import Store
from worker.asking import read_prompt
from worker.gemini import Gemini, Usage, nearest_aspect
from worker.images import decode, encode_png
from worker.images.outgoing import to_send
from worker.images.register import register
from worker.turns import Turns


def main() -> int:
    try:
        if not load_settings().gemini_api_key.get_secret_value():
            print("Skipped: GEMINI_API_KEY is not set (in .env or the environment), so there is nobody to call.")
            return 0
        if find_redis_server() is None:
            print("Skipped: there is no redis-server to count the calls in.")
            return 0
        with tempfile.TemporaryDirectory() as folder, RedisServer(folder=Path(folder)) as redis:
            return _call(redis.url)
    except (ExtractionError, FatalError) as exc:
        print(f"FAILED: {getattr(exc, 'code', 'settings')}: {exc}")
        return 1


def _call(redis_url: str) -> int:
    settings = load_settings(redis_url=redis_url)
    photo = mockup(load_designs()[-1], seed=1, ground="plain")
    picture = decode(photo, pixel_limit=settings.pixel_limit)
    store = Store.from_settings(settings)
    gemini = Gemini(settings, Turns(settings, store), read_prompt(settings.gemini_prompt_file))
    usage = Usage()
    answer = gemini.extract(
        to_send(picture), "image/jpeg", nearest_aspect(picture.width, picture.height), usage, lambda: None
    )
    store.close()
    registered = register(decode(answer, pixel_limit=settings.pixel_limit).rgb, picture.rgb)
    settings.outputs_dir.mkdir(parents=True, exist_ok=True)
    before, after = settings.outputs_dir / "gemini_photo.jpg", settings.outputs_dir / "gemini_design.png"
    before.write_bytes(photo)
    after.write_bytes(b"".join(encode_png(registered.rgb)))
    print(f"{settings.gemini_model} answered after {usage.calls} call(s); tokens: {usage.tokens}")
    print(f"score {registered.score}, redrawn: {registered.redrawn}; compare {before} with {after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
