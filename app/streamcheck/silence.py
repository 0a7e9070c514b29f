"""A long silence at one hop, waited for beside everything else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from streamcheck.asker import EMISSION_SLACK_SECONDS, Asker
from streamcheck.emission import Plan
from streamcheck.model import CheckError, Hop, Observation, Way
from streamcheck.wire import NotOfferedError

WAY = Way("emitter", "GET")


class Silence:
    """An emission of `plan` at `hop`, which begins at once. Only for a hop with the emitter."""

    def __init__(self, asker: Asker, hop: Hop, plan: Plan) -> None:
        self.hop = hop
        self._asker = asker
        self._plan = plan
        self._seen: Observation | None = None
        self._thread = threading.Thread(
            target=self._observe, daemon=True, name=f"silence-{hop.target.name}"
        )
        self._thread.start()

    def _observe(self) -> None:
        # What cannot be asked has no answer; the walk says why.
        with contextlib.suppress(CheckError, NotOfferedError):
            self._seen = self._asker.emission(self.hop.target, WAY, self._plan)

    def end(self, say: Callable[[str], None]) -> Observation | None:
        """Wait for the end, and return what came; None if it could not be asked to the end."""
        if self._thread.is_alive():
            seconds = f"{self._plan.silence_seconds:g} s"
            say(f"{self.hop.target.name}: waiting for a silence of {seconds} to end")
        self._thread.join(self._plan.seconds + 2 * EMISSION_SLACK_SECONDS)
        return self._seen
