"""Clients that post jobs all the time and try again under the same Idempotency-Key until they are answered."""

import random
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

import requests

from tests.chaos.stack import Accepted, Stack, poison

#: Pause after a connection that was refused or cut off (s), and after a 503.
_RETRY_S = 0.05
#: How long a client asks for one job before it gives up (s); longer than any outage a test makes.
_PATIENCE_S = 120.0


class Clients:
    """A number of threads; a context manager that lets each finish what it has asked for.

    Attributes:
        accepted: every job that a client was told of.
        answers: how often which status came; 0 is no answer at all.
        duplicates: job ids that a client saw beside the first one of its key.
    """

    def __init__(
        self, stack: Stack, count: int, seed: int, *, poison_share: float = 0.0, pause_s: float = 0.05
    ) -> None:
        self.accepted: list[Accepted] = []
        self.answers: Counter[int] = Counter()
        self.duplicates = 0
        self._stack, self._poison_share, self._pause_s = stack, poison_share, pause_s
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number, random.Random(f"{seed} {number}")))
            for number in range(count)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * _PATIENCE_S)
        if self._errors and exc is None:
            raise self._errors[0]

    def _run(self, number: int, choice: random.Random) -> None:
        try:
            for turn in range(10**9):
                if self._stop.wait(choice.uniform(0, 2 * self._pause_s)):
                    return
                self._one(f"client-{number}-{turn}", choice)
        except BaseException as exc:
            self._errors.append(exc)

    def _one(self, key: str, choice: random.Random) -> None:
        bad = poison() if choice.random() < self._poison_share else None
        form, sizes = self._stack.form(*choice.choice([("front",), ("front", "back")]), data=bad)
        headers = {"Idempotency-Key": key, "Prefer": choice.choice(["respond-async", "wait=1", "wait=10"])}
        seen: list[str] = []
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            reply = self._post(form, headers)
            with self._lock:
                self.answers[reply.status_code if reply is not None else 0] += 1
            body = reply.json() if reply is not None else {}
            # A job that ended badly is an answer too, and its id is in its Location or its problem.
            job_id = body.get("job_id")
            if job_id is not None:
                seen.append(job_id)
                # Now and then a client sends it again although it was answered.
                if len(seen) > 1 or choice.random() > 0.1:
                    break
                continue
            assert reply is None or reply.status_code in (500, 503), reply.text
            if time.monotonic() > deadline:
                raise AssertionError(f"{key} was never answered: {reply is not None and reply.text}")
            time.sleep(_RETRY_S)
        with self._lock:
            self.duplicates += len(set(seen)) - 1
            self.accepted.append(Accepted(seen[0], sizes, bad is not None))

    def _post(self, form: dict[str, object], headers: dict[str, str]) -> requests.Response | None:
        try:
            return requests.post(f"{self._stack.url}/process", headers=headers, timeout=60, **form)  # type: ignore[arg-type]
        except requests.RequestException:
            return None
