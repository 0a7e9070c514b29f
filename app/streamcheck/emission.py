"""The backend's emitter: what is asked of it, and what its events tell about the way they came.

The emitter writes numbered events at a known pace and stamps each with the moment of its sending,
so a hop is judged against what was really sent and not against what an engine might have made.
"""

from __future__ import annotations

import hashlib
import itertools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from streamcheck import features
from streamcheck.model import Finding, Observation

PATH = "/streamcheck"

HELD_SECONDS = 0.012
"""Half of all events later than the quickest by this: nobody's network does that by itself, and
Nagle's algorithm with delayed acknowledgements (40 ms) does it with 20 ms."""
ADDED_SECONDS = 0.030
"""Every event later by this on the way through one machine: something waits on purpose."""
FEWEST_EVENTS = 8
"""Of fewer events nothing is said about when they came."""
AT_ONCE_SHARE = 0.3
"""An answer that comes in this share of the time it was made in was held and let go."""
POWERS = tuple(1 << n for n in range(11, 20))
"""Sizes that buffers have: 2 KiB to 512 KiB."""


@dataclass(frozen=True)
class Plan:
    """What an emission is asked for. Two paces in one emission tell a buffer of so many bytes
    (same size, other interval) from one of so many milliseconds (same interval, other size).
    """

    run: str
    events: int = 200
    paces_ms: tuple[int, ...] = (3, 9)
    lead_ms: int = 250
    silence_seconds: float = 0
    heartbeats: bool = True
    awkward: bool = False
    size: int = 0

    @property
    def path(self) -> str:
        """The request's path and query."""
        query = {
            "run": self.run,
            "events": self.events,
            "pace_ms": ",".join(map(str, self.paces_ms)),
            "lead_ms": self.lead_ms,
            "silence_seconds": f"{self.silence_seconds:g}",
            "heartbeats": int(self.heartbeats),
            "awkward": int(self.awkward),
            "bytes": self.size,
        }
        return PATH + "?" + "&".join(f"{name}={value}" for name, value in query.items())

    @property
    def seconds(self) -> float:
        """How long it takes."""
        pace = statistics.fmean(self.paces_ms) / 1000
        return self.lead_ms / 1000 + self.events * pace + self.silence_seconds


def judge(seen: Observation, plan: Plan) -> list[Finding]:
    """Say how the way broke the emission; nothing when it streamed."""
    found = [*_ending(seen, plan), *_contents(seen), *_protocol(seen)]
    if len(seen.numbered) >= FEWEST_EVENTS and not plan.silence_seconds:
        found += _delays(seen, plan)
    return found


def _ending(seen: Observation, plan: Plan) -> list[Finding]:
    if seen.ended in ("terminal", "left", "too_long"):
        return []
    quiet = features.quiet_at_the_end(seen)
    if plan.silence_seconds and seen.digest_right is None and quiet >= 1:
        return [
            Finding(
                "cut_on_silence", 0.95,
                f"the stream was cut after {quiet:.0f} s without a byte",
                {"seconds": round(quiet, 1)},
            )
        ]  # fmt: skip
    if seen.ended == "timeout":
        return []
    if seen.ended == "end" and seen.digest_right is not None:
        summary = "every token came, but the terminal event [DONE] did not"
    elif seen.ended == "error_event":
        return [Finding("error_in_stream", 0.9, seen.error or "an error came in the stream")]
    else:
        size = sum(arrival.size for arrival in seen.arrivals)
        summary = (
            f"the answer ended after {len(seen.numbered)} of {plan.events} events, {size} bytes"
        )
    return [Finding("truncated", 0.97, summary, {"events": len(seen.numbered)})]


def _contents(seen: Observation) -> list[Finding]:
    numbers = [event.n for event in seen.numbered]
    found = []
    lost = sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers))
    if lost or numbers != sorted(set(numbers)):
        what = f"{len(lost)} of {max(numbers)} events are missing"
        if not lost:
            what = "events came twice, or in another order"
        found.append(Finding("events_lost", 0.99, what, {"lost": len(lost)}))
    elif seen.digest_right is False:
        found.append(Finding("bytes_changed", 0.97, "the bytes are not those that were sent"))
    if not seen.comments and seen.ended == "terminal":
        found.append(
            Finding("bytes_changed", 0.9, "comments are dropped, and heartbeats are comments")
        )
    kind = seen.headers.get("content-type", "")
    if numbers and not kind.lower().startswith("text/event-stream"):
        found.append(content_type_changed(kind))
    return found


def content_type_changed(kind: str) -> Finding:
    """Return the finding for an event stream that is called something else."""
    return Finding(
        "content_type_changed", 0.97,
        f"an event stream comes as {kind or 'no content type at all'}: a browser's EventSource "
        "refuses it, and proxies treat it as a page",
        {"content_type": kind},
    )  # fmt: skip


def _protocol(seen: Observation) -> list[Finding]:
    request = seen.start.get("request")
    arrived = request.get("http_version") if isinstance(request, dict) else None
    if seen.http_version == "1.0":
        return [downgraded("the answer comes as HTTP/1.0")]
    if arrived == "1.0":
        return [downgraded("the request reached the backend as HTTP/1.0")]
    return []


def downgraded(what: str) -> Finding:
    """Return the finding for HTTP/1.0 somewhere on the way."""
    return Finding(
        "http_1_0_downgrade", 0.95,
        f"{what}: no chunks, so an answer that is cut looks complete, and no connection is reused",
    )  # fmt: skip


def _delays(seen: Observation, plan: Plan) -> list[Finding]:
    if not _is_shaken(seen):
        return [*_first_held(seen, plan), *_added(seen)]
    delays = features.delays(seen)
    tail = delays[3 * len(delays) // 4 :]
    if min(tail) > 0.5 * max(delays) and min(tail) > 0.1:
        rate = sum(a.size for a in seen.arrivals) / (seen.arrivals[-1].at or 1)
        return [
            Finding(
                "slow_hop", 0.9,
                f"the hop carries {rate / 1000:.1f} kB/s and no more: events fall behind steadily "
                "(back-pressure, not a buffer)",
                {"bytes_per_second": round(rate)},
            )
        ]  # fmt: skip
    together = [burst for burst in features.content_bursts(seen) if burst.events]
    sent = features.sent_bursts(seen)
    if len(together) * 1.5 > sent:
        # Late, but one by one as they were sent: the way's delay varies, nothing gathers them.
        return []
    at_once = AT_ONCE_SHARE * features.sent_lasting(seen)
    if len(together) <= 2 or features.came_at_once(seen, at_once):
        return [whole_response_held(seen, 0.98, delays[0])]
    return [batches(seen, 0.98)]


def _first_held(seen: Observation, plan: Plan) -> list[Finding]:
    """The head and the opening comment are sent `lead_ms` before the first event."""
    lead = plan.lead_ms / 1000
    first = seen.first_token_seconds or 0.0
    begun = seen.headers_seconds if seen.first_byte_seconds is None else seen.first_byte_seconds
    if lead and begun is not None and seen.comments and first - begun < 0.3 * lead:
        return [
            Finding(
                "first_byte_held", 0.95,
                f"nothing comes before the first token, although the answer began "
                f"{plan.lead_ms} ms earlier: a long prefill looks like a dead connection",
                {"seconds": round(lead, 3)},
            )
        ]  # fmt: skip
    return []


def added_seconds(seen: Observation) -> float | None:
    """Return how much later than it was sent an event came, the median; None where none can tell.

    A delay that is the same for every event shows only where both ends share one clock, or
    where there is no distance that could be its reason; and in no answer that was shaken on its
    way.
    """
    if len(seen.numbered) < FEWEST_EVENTS or _is_shaken(seen):
        return None
    started, boot = seen.start.get("started_monotonic"), _boot()
    if boot and seen.start.get("boot") == boot and isinstance(started, int | float):
        shift = seen.requested_at - started
    elif seen.is_near:
        shift = 0.0  # The emission began when the request was sent, or a moment later.
    else:
        return None
    return statistics.median(shift + event.at - event.sent for event in seen.numbered)


def _is_shaken(seen: Observation) -> bool:
    return statistics.median(features.delays(seen)) >= HELD_SECONDS


def _added(seen: Observation) -> list[Finding]:
    added = added_seconds(seen)
    if added is None or added < ADDED_SECONDS:
        return []
    return [
        Finding(
            "delayed", 0.9, f"every event comes {1000 * added:.0f} ms late",
            {"milliseconds": round(1000 * added)},
        )
    ]  # fmt: skip


def _boot() -> str | None:
    try:
        said = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return None
    return hashlib.sha256(said.replace("-", "").strip().encode()).hexdigest()[:16]


def whole_response_held(seen: Observation, confidence: float, waited: float) -> Finding:
    """Return the finding for an answer that was kept and let go at its end.

    `waited`: how long the first event was held, seconds.
    """
    return Finding(
        "whole_response_held", confidence,
        f"all {seen.events} events came at once, {seen.first_token_seconds or 0:.1f} s after "
        "the request",
        {"seconds": round(waited, 2)},
    )  # fmt: skip


def batches(seen: Observation, confidence: float) -> Finding:
    """Say in what portions an answer came: so many bytes, or so many milliseconds."""
    found = features.content_bursts(seen)
    full = [burst for burst in found if burst.events]
    # The last one holds what was left; the first may have gone through alone.
    inner = found[1:-1] if len(found) > 4 else found[:-1]
    starts = [burst.at for burst in (inner if len(inner) > 2 else found)]
    intervals = [b - a for a, b in itertools.pairwise(starts)]
    sizes = [float(burst.size) for burst in inner]
    size, interval = statistics.median(sizes), statistics.median(intervals)
    count = seen.events / len(full)
    cut = sum(burst.partial for burst in inner) >= 0.5 * len(inner)
    if cut or size < POWERS[0]:
        by_bytes = cut  # Nobody has a buffer of less than 2 KiB for an answer's body.
    elif (
        not 0.5
        < (sizes_vary := features.spread(sizes) + 0.02)
        / (intervals_vary := features.spread(intervals) + 0.02)
        < 2
    ):
        by_bytes = sizes_vary < intervals_vary
    else:
        # At one steady pace both look alike: but a buffer's size is a power of two, and what goes
        # over it is the event that filled it.
        over = size - max(power for power in POWERS if power <= size)
        by_bytes = over <= 1.5 * size / max(count, 1)
    if by_bytes:
        return Finding(
            "batched_bytes", confidence,
            f"events come in portions of about {size:.0f} bytes ({count:.0f} events)",
            {"bytes": round(size), "events": round(count, 1)},
        )  # fmt: skip
    return Finding(
        "batched_time", confidence,
        f"events come every {1000 * interval:.0f} ms, about {count:.0f} at a time",
        {"milliseconds": round(1000 * interval), "events": round(count, 1)},
    )  # fmt: skip


def new_run() -> str:
    """Return a name that makes the addresses of this run its own, so that no cache knows them."""
    return f"{time.time_ns():x}"
