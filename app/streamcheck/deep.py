"""The rest of the promise: silence, leaving, long prompts, awkward tokens, slow readers.

Each check gives one entry per hop, and a finding where the hop breaks the promise.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterable
from typing import Any

from streamcheck import features
from streamcheck.asker import GENERATION_SECONDS
from streamcheck.emission import HELD_SECONDS, Plan
from streamcheck.engine import Running
from streamcheck.judge import findings_of
from streamcheck.model import CheckError, Finding, Hop, Observation, Way
from streamcheck.probe import Ask, chat
from streamcheck.silence import Silence
from streamcheck.walk import Walk

CHECKS = ("silence", "leave", "prompt", "awkward", "slow_reader")

SILENCE_SECONDS = 130
"""Longer than any common limit: 60 s in nginx and most balancers, 100 to 120 s at Cloudflare."""
FREED_SECONDS = 2.0
PROMPT_BYTES = 300_000
WAIT_SECONDS = 1.0
"""An answer that begins later than this waited for something."""
NO_EMITTER = "needs the backend's emitter, which does not answer here"

# Every one of these has broken somebody's stream: separators that a text API takes for line ends,
# white space at the end that a parser strips, a character of four bytes that is made of several
# tokens, and the same token over and over, which LiteLLM's parsing route takes for a loop.
AWKWARD_TEXT = (
    'a\u2028b\u2029c \n\n\r\n\ttab "quote" back\\slash e\u0301 '
    "\U0001f680\U0001f469\u200d\U0001f680" + " same" * 100 + "\n"
)

Entry = dict[str, Any]


class Deep:
    """Runs the named checks over the hops of a walk: begin() with it, run() after it."""

    def __init__(self, walk: Walk, names: Iterable[str]) -> None:
        self.walk = walk
        self.asker = walk.asker
        self.names = list(names)
        self.entries: list[Entry] = []
        self.running: Running | None = None
        # What is missing to count the engine's requests.
        self.why = "needs the engine's own count of requests: check a server of the inventory"
        self._silent = self.asker.silent_plan(SILENCE_SECONDS, heartbeats=True)
        self._quiet: list[Silence] = []

    def begin(self) -> None:
        """Start the long silences: they wait beside everything else."""
        if "silence" not in self.names:
            return
        for hop in self.walk.hops:
            if self.asker.has_emitter(hop.target):
                self._quiet.append(Silence(self.asker, hop, self._silent))
            else:
                self._tell(hop, "silence", "skipped", NO_EMITTER)

    def run(self, running: Running | None) -> list[Entry]:
        """Run the checks. `running` counts the engine's requests, where it can be asked."""
        self.running = running
        for hop in self.walk.hops:
            for name in self.names:
                if name == "silence":
                    continue
                self.walk.say(f"{hop.target.name}: {name}")
                try:
                    getattr(self, f"_{name}")(hop)
                except CheckError as error:
                    self._tell(hop, name, "unsure", str(error))
        for quiet in self._quiet:
            self._judge_silence(quiet.hop, quiet.end(self.walk.say))
        return self.entries

    def _tell(
        self, hop: Hop, name: str, result: str, summary: str, kind: str | None = None,
        way: Way | None = None,
    ) -> None:  # fmt: skip
        entry = {"name": name, "hop": hop.target.name, "result": result, "summary": summary}
        self.entries.append({**entry, "kind": kind})
        if kind:
            ways = (str(way),) if way else ()
            hop.findings.append(Finding(kind, 0.95, summary, {"check": name}, ways, "deep"))

    # Silence --------------------------------------------------------------------------------

    def _judge_silence(self, hop: Hop, seen: Observation | None) -> None:
        if seen is None:
            self._tell(hop, "silence", "unsure", "it could not be asked to the end")
        elif seen.ended == "terminal":
            longest = features.longest_silence(seen) or 0
            told = f"{SILENCE_SECONDS} s without a token, a byte at least every {longest:.0f} s"
            self._tell(hop, "silence", "passed", told)
        else:
            found = findings_of(seen, None, self._silent)
            summary = found[0].summary if found else f"it ended with: {seen.ended}"
            self._tell(hop, "silence", "failed", summary, "cut_on_silence", seen.way)

    # Leaving --------------------------------------------------------------------------------

    def _leave(self, hop: Hop) -> None:
        """Begin a long answer, leave, and see whether the engine stops working on it."""
        running = self.running
        if running is None:
            self._tell(hop, "leave", "skipped", self.why)
            return
        if not self._until(running, 0, 10):
            told = "the engine works for others, so that its count tells nothing"
            self._tell(hop, "leave", "unsure", told)
            return
        ended = "an answer of 4,000 tokens ended before anyone could leave it"
        for way in [Way("generation"), Way("generation", "POST", "h2")]:
            if way.protocol == "h2" and not hop.target.url.startswith("https"):
                continue
            seen = self._begin_and_leave(hop, way)
            if seen.ended != "left":
                self._tell(hop, "leave", "unsure", seen.error or ended)
                return
            left = time.monotonic()
            if not self._until(running, 0, FREED_SECONDS):
                told = f"the engine still works {FREED_SECONDS:g} s after its client has left"
                self._tell(hop, "leave", "failed", told, "disconnect_ignored", way)
                self._until(running, 0, 60)
                return
            took = time.monotonic() - left
        self._tell(hop, "leave", "passed", f"the engine is free {took:.1f} s after a client left")

    def _begin_and_leave(self, hop: Hop, way: Way) -> Observation:
        running = self.running
        assert running is not None

        def enough(seen: Observation) -> bool:
            return seen.events >= 5 and (running() or 0) > 0

        body = chat(self.asker.model, "Go on and on.", max_tokens=4000, ignore_eos=True)
        ask = Ask("/chat/completions", body, GENERATION_SECONDS, leave=enough)
        return self.asker.ask(hop.target, way, ask)

    @staticmethod
    def _until(running: Running, count: float, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if running() == count:
                return True
            time.sleep(0.02)
        return False

    # What is sent and what arrives ----------------------------------------------------------

    def _prompt(self, hop: Hop) -> None:
        """Send a prompt of 300 KB; an engine with a shorter context is told to use its end."""
        words = "water wheel river mill stone "
        text = (words * (PROMPT_BYTES // len(words) + 1))[:PROMPT_BYTES]
        for more in ({"truncate_prompt_tokens": 512}, {}):
            body = chat(self.asker.model, text, max_tokens=8, **more)
            ask = Ask("/chat/completions", body, GENERATION_SECONDS)
            seen = self.asker.ask(hop.target, Way("generation"), ask)
            if seen.status == 200:
                break
        said = (seen.error or "").lower()
        if seen.status == 200 and seen.events:
            told = f"a prompt of {PROMPT_BYTES // 1000} KB was answered"
            self._tell(hop, "prompt", "passed", told)
        elif seen.status in (400, 422) and ("context" in said or "token" in said):
            told = "the whole prompt reached the engine, whose context is shorter"
            self._tell(hop, "prompt", "passed", told)
        else:
            told = f"a prompt of {PROMPT_BYTES // 1000} KB: {seen.error or seen.ended}"
            self._tell(hop, "prompt", "failed", told, "request_refused", seen.way)

    def _awkward(self, hop: Hop) -> None:
        if self.asker.has_emitter(hop.target):
            plan = Plan(self.asker.run_name, 8, (5,), 0, awkward=True)
            seen = self.asker.emission(hop.target, Way("emitter"), plan)
            found = [f for f in findings_of(seen, None, plan) if f.kind != "first_byte_held"]
            if found:
                self._tell(hop, "awkward", "failed", found[0].summary, found[0].kind, seen.way)
            else:
                self._tell(hop, "awkward", "passed", "awkward tokens arrive byte for byte")
            return
        # The engine is made to say it: its grammar allows this one text and no other.
        forced = {"structured_outputs": {"choice": [AWKWARD_TEXT]}}
        body = chat(self.asker.model, "Say it.", max_tokens=1000, **forced)
        ask = Ask("/chat/completions", body, GENERATION_SECONDS)
        seen = self.asker.ask(hop.target, Way("generation"), ask)
        if seen.status in (400, 404, 422):
            self._tell(hop, "awkward", "skipped", f"the engine takes no grammar: {seen.error}")
        elif seen.text == AWKWARD_TEXT and seen.ended == "terminal":
            self._tell(hop, "awkward", "passed", "awkward tokens arrive byte for byte")
        else:
            kind = "bytes_changed" if seen.ended == "terminal" else "truncated"
            told = f"awkward tokens: {seen.error or 'the text is not what the engine said'}"
            self._tell(hop, "awkward", "failed", told, kind, seen.way)

    # Neighbours -----------------------------------------------------------------------------

    def _slow_reader(self, hop: Hop) -> None:
        """Let one client read slowly and see whether another's events come late."""
        if not self.asker.has_emitter(hop.target):
            self._tell(hop, "slow_reader", "skipped", NO_EMITTER)
            return
        way = Way("emitter")
        much = Plan(self.asker.run_name, 2000, (1,), 0, size=4000)
        until = time.monotonic() + 8
        slow = Ask(
            much.path, b"{}", 12, leave=lambda _: time.monotonic() > until,
            reading_pause_seconds=0.2, receive_buffer=4096,
        )  # fmt: skip
        reader = threading.Thread(
            target=lambda: self.asker.ask(hop.target, way, slow),
            daemon=True,
            name="slow reader",
        )
        reader.start()
        time.sleep(1)
        late = 9.0
        for _ in range(3):
            if not reader.is_alive():
                break
            seen = self.asker.emission(hop.target, way, self.asker.plan)
            # Late events, or a whole answer that had to wait its turn.
            middle = statistics.median(features.delays(seen) or [9.0])
            late = min(late, max(middle, (seen.headers_seconds or 9.0) - WAIT_SECONDS))
            if late < HELD_SECONDS and seen.ended == "terminal":
                break
        reader.join(15)
        if late < HELD_SECONDS:
            told = f"another's events come at most {1000 * max(late, 0):.1f} ms later beside it"
            self._tell(hop, "slow_reader", "passed", told)
        elif any(f.kind != "slow_reader_blocks" for f in hop.findings):
            self._tell(hop, "slow_reader", "unsure", "the hop is broken by itself already")
        else:
            told = f"while one client reads slowly another's answer comes {late:.1f} s late"
            self._tell(hop, "slow_reader", "failed", told, "slow_reader_blocks", way)
