"""Real answers of a model: what their arrivals tell, alone and beside the hop behind."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence

from streamcheck import features
from streamcheck.emission import (
    AT_ONCE_SHARE,
    batches,
    content_type_changed,
    downgraded,
    whole_response_held,
)
from streamcheck.model import Finding, Observation

FEWEST_EVENTS = 8
"""Below this an answer is too short to tell a batch from a burst."""
READ_SECONDS = 0.015
"""An event in less than this is quicker than anybody reads, however quick the hop behind is."""
AT_ONCE_SECONDS = 0.0005
"""An event in less than this is written from a buffer; no engine makes tokens so fast."""
TOGETHER = 2.0
"""Events per burst from which on they do not come one by one."""

NEAR_SECONDS = 0.005
"""A connection that is made quicker than this stays on the machine or in its room."""


def judge(seen: Observation, behind: Observation | None) -> list[Finding]:
    """Say how the answer was broken. `behind`: the same from the hop behind, if it could be asked.

    Without it a finding that an engine could cause by itself is less sure.
    """
    found = [*_ending(seen, behind)]
    kind = seen.headers.get("content-type", "")
    if seen.events and not kind.lower().startswith("text/event-stream"):
        found.append(content_type_changed(kind))
    if seen.http_version == "1.0":
        found.append(downgraded("the answer comes as HTTP/1.0"))
    if seen.events >= FEWEST_EVENTS:
        found += _portions(seen, behind)
    return found


def _ending(seen: Observation, behind: Observation | None) -> list[Finding]:
    if seen.ended == "error_event":
        return [Finding("error_in_stream", 0.9, seen.error or "an error came in the stream")]
    quiet = features.quiet_at_the_end(seen)
    if seen.ended == "cut" or (seen.ended == "end" and not seen.finish_seen):
        if quiet >= 5:
            return [
                Finding(
                    "cut_on_silence", 0.8, f"the stream was cut after {quiet:.0f} s of silence",
                    {"seconds": round(quiet, 1)},
                )
            ]  # fmt: skip
        size = sum(arrival.size for arrival in seen.arrivals)
        return [
            Finding(
                "truncated", 0.97,
                f"the answer broke off after {seen.events} events, {size} bytes",
                {"events": seen.events, "bytes": size},
            )
        ]  # fmt: skip
    if seen.ended == "end" and behind is not None and behind.ended == "terminal":
        return [Finding("truncated", 0.9, "the terminal event [DONE] is missing")]
    return []


def _portions(seen: Observation, behind: Observation | None) -> list[Finding]:
    count = features.events_per_burst(seen)
    if count < TOGETHER:
        return []
    if behind is not None and count < TOGETHER * features.events_per_burst(behind):
        return []
    held = seen.first_token_seconds or 0.0
    # A quick engine's answer may be one portion as well, but it takes its time.
    at_once = AT_ONCE_SECONDS * seen.events
    if behind is not None:
        # A longer answer than the one behind took longer to make, by as many events.
        longer = seen.events / max(behind.events, 1)
        at_once = AT_ONCE_SHARE * features.lasting(behind) * longer
    if features.came_at_once(seen, at_once):
        # Alone it may be a very quick engine: walk.py asks again for a longer answer.
        if behind is not None and features.lasting(behind) < 2 * features.SEEN_SECONDS:
            return []
        return [whole_response_held(seen, 0.97 if behind is not None else 0.6, held)]
    found = [burst for burst in features.content_bursts(seen) if burst.events]
    if len(found) <= 2:
        return []
    # What a reader sees is the silence between two bursts: a quick engine's reads touch one another
    # for as long as they come.
    silence = statistics.median(b.at - a.end for a, b in itertools.pairwise(found))
    if silence < features.SEEN_SECONDS:
        return []
    interval = statistics.median(b.at - a.at for a, b in itertools.pairwise(found))
    return [batches(seen, 0.95 if behind is not None else _alone(seen, interval))]


def _alone(seen: Observation, interval: float) -> float:
    """How sure it is that batches come from a buffer and not from an engine that guesses ahead.

    Speculative decoding may give a few tokens a step, all at once. A step is shorter than a tenth
    of a second, its tokens are few, and a buffer's portions are cut where no writer cuts.
    """
    # A step that was written in two, or read in two, is one all the same.
    found = [burst for burst in features.content_bursts(seen, interval / 4) if burst.events]
    counts = [burst.events for burst in found[1:-1]] or [burst.events for burst in found]
    if sum(burst.partial for burst in found) >= 0.5 * len(found):
        return 0.95
    if interval >= 0.1 or statistics.fmean(counts) > 8:
        return 0.9
    return 0.75 if timed(counts) else 0.4


def timed(counts: Sequence[int]) -> bool:
    """Say whether a timer cut a steady flow into these portions: n events, or n + 1 at a time.

    Here and there a late one falls out of the row. What sets speculative decoding apart: a guess
    fails at its first token as often as at a later one, so that portions of less than n are no
    rarer than those of n; and where no guess fails, all portions are alike.
    """
    common = Counter(counts).most_common(2)
    if len(common) < 2 or abs(common[0][0] - common[1][0]) != 1:
        return False
    n = min(common)[0]
    fewer, both = sum(count < n for count in counts), sum(times for _, times in common)
    enough = both >= 0.7 * len(counts) and common[1][1] >= 0.1 * len(counts)
    return n > 1 and enough and 2 * fewer < counts.count(n)


def kept_somewhere(first: Observation, again: Observation) -> Finding | None:
    """Say whether the second of two same questions got the first one's answer out of a cache."""
    if not first.answer_id or first.answer_id != again.answer_id or first.text != again.text:
        return None
    stamp = first.start.get("started_monotonic")
    if stamp is not None and stamp == again.start.get("started_monotonic"):
        sure = 0.99  # The emitter's own stamp: it never wrote this a second time.
    elif again.headers.get("age") or "hit" in _cache_words(again):
        sure = 0.97
    elif (again.end_seconds or 0) < 0.5 * (first.end_seconds or 0):
        sure = 0.85
    else:
        return None
    age = again.headers.get("age")
    return Finding(
        "cached", sure,
        "a second request got the first one's answer again, word for word"
        + (f", {age} s old" if age else ""),
        {"age": age, "cf_cache_status": again.headers.get("cf-cache-status")},
    )  # fmt: skip


def _cache_words(seen: Observation) -> str:
    return " ".join(seen.headers.get(k, "") for k in ("cf-cache-status", "x-cache")).lower()


def slower(seen: Observation, behind: Observation) -> Finding | None:
    """Say whether the answer takes more than twice as long as at the hop behind.

    Both are timed from the earlier of the two first tokens on: an answer whose beginning was held
    up for a moment comes the quicker afterwards, and that is no pace to hold another to.
    """
    if min(seen.events, behind.events) < FEWEST_EVENTS:
        return None
    begin = min(_first(seen), _first(behind))
    ours, theirs = _last(seen) - begin, _last(behind) - begin
    if ours < 2 * theirs or ours < READ_SECONDS * seen.events:
        return None
    return Finding(
        "slow_hop", 0.8,
        f"{seen.events / ours:.0f} events a second, where the hop behind gives "
        f"{behind.events / max(theirs, 0.001):.0f}",
        {"seconds": round(ours, 3), "behind_seconds": round(theirs, 3)},
    )  # fmt: skip


def _first(seen: Observation) -> float:
    return next((arrival.at for arrival in seen.arrivals if arrival.events), 0.0)


def _last(seen: Observation) -> float:
    return next((arrival.at for arrival in reversed(seen.arrivals) if arrival.events), 0.0)


def later(seen: Observation, behind: Observation, allowed_seconds: float) -> Finding | None:
    """Say whether the first token comes later than at the hop behind by more than is allowed.

    Only between hops of one machine: elsewhere distance does the same.
    """
    ours, theirs = seen.first_token_seconds, behind.first_token_seconds
    near = max(seen.connect_seconds or 0, behind.connect_seconds or 1) < NEAR_SECONDS
    if not near or ours is None or theirs is None or ours - theirs < allowed_seconds:
        return None
    return Finding(
        "delayed", 0.75,
        f"the first token comes {1000 * (ours - theirs):.0f} ms later than at the hop behind",
        {"milliseconds": round(1000 * (ours - theirs))},
    )  # fmt: skip
