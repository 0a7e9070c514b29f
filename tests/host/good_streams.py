"""Well-behaved visitors: streams of the emitter, one after another, each looked at whole.

    python3 good_streams.py ADDRESS SECONDS VISITORS < key          prints one JSON document

Runs here and on the outside host alike, with nothing but Python's own library. HTTP/1.1, a new
connection for every stream.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import ssl
import sys
import threading
import time

EVENTS, PACE_MS = 60, 50
PATH = f"/v1/streamcheck?events={EVENTS}&pace_ms={PACE_MS}&heartbeats=0"


def stream(address: str, key: str) -> tuple[float, float]:
    """Read one stream to its end; seconds to the first event, and the longest gap after it."""
    context = ssl._create_unverified_context()
    began = time.monotonic()
    link = http.client.HTTPSConnection(address, timeout=20, context=context)
    try:
        link.request("GET", PATH, headers={"Authorization": f"Bearer {key}"})
        answer = link.getresponse()
        assert answer.status == 200, f"status {answer.status}"
        times, blocks, block = [], [], b""
        for line in answer:
            block += line
            if line != b"\n":
                continue
            if b"\ndata: " in block or block.startswith(b"data: "):
                times.append(time.monotonic())
                blocks.append(block)
            block = b""
    finally:
        link.close()
    assert blocks[-1:] == [b"data: [DONE]\n\n"], "no end"
    told = json.loads(blocks[-2].partition(b"data: ")[2])["streamcheck"]
    numbered = b"".join(blocks[:-2])
    assert told["events"] == len(blocks) - 2 == EVENTS, "events are missing"
    assert told["sha256"] == hashlib.sha256(numbered).hexdigest(), "bytes have changed"
    gaps = [after - before for before, after in itertools.pairwise(times[:-2])]
    return times[0] - began, max(gaps)


def main() -> None:
    """Visit until the time is over."""
    address, seconds, visitors = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    key = sys.stdin.readline().strip()
    until = time.monotonic() + seconds
    firsts: list[float] = []
    gaps: list[float] = []
    wrong: list[str] = []

    def visit() -> None:
        while time.monotonic() < until:
            try:
                first, gap = stream(address, key)
            except (OSError, AssertionError, http.client.HTTPException) as error:
                wrong.append(repr(error))
                time.sleep(0.5)
                continue
            firsts.append(first)
            gaps.append(gap)

    threads = [threading.Thread(target=visit) for _ in range(visitors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"whole": len(gaps), "wrong": wrong, "first_seconds": max(firsts, default=0),
                      "gap_seconds": max(gaps, default=0)}))  # fmt: skip


if __name__ == "__main__":
    main()
