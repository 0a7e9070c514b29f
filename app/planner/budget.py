"""One budget of timeouts and heartbeats for every hop."""

from __future__ import annotations

# In seconds. The rule: each hop waits longer than the hop behind it, and each pool lets go of an
# idle connection before the server behind it does, or a request races the close and fails with a
# 502 that nobody can reproduce.
HEARTBEAT_SECONDS = 15  # Cloudflare gives up after 100 s without a byte; six beats fit in that
CONNECT_SECONDS = 5  # every upstream is on this server or next to it
FIRST_BYTE_SECONDS = 600  # a long prompt behind a full queue
IDLE_SECONDS = 300  # engine silent in mid-answer: it hangs
LONGEST_STREAM_SECONDS = 3600
RESTART_WAIT_SECONDS = 120  # a request waits so long for an engine that is being restarted
DRAIN_SECONDS = 60  # open streams get this long when a service is told to stop
ENGINE_KEEPALIVE_SECONDS = 75  # vLLM closes idle connections after this (its default, 5, races)
GATEWAY_READ_SECONDS = 290  # under the backend's, so that the hop nearest to the fault names it
GATEWAY_POOL_SECONDS = 15  # LiteLLM's aiohttp pool lets go after this
GATEWAY_KEEPALIVE_SECONDS = 75
BACKEND_POOL_SECONDS = 15
BACKEND_KEEPALIVE_SECONDS = 80
CLIENT_HEADER_SECONDS = 20  # a request's head, from its first byte
CLIENT_BODY_SECONDS = 30  # between two pieces of a prompt
CLIENT_SEND_SECONDS = 60  # a client that reads nothing for so long has left
CLIENT_KEEPALIVE_SECONDS = 910  # Cloudflare keeps idle origin connections for 900


def timeout_budget() -> dict[str, int]:
    """Return the one budget of timeouts and heartbeats, seconds, keyed by what they bound."""
    return {
        "heartbeat_seconds": HEARTBEAT_SECONDS,
        "connect_seconds": CONNECT_SECONDS,
        "first_byte_seconds": FIRST_BYTE_SECONDS,
        "idle_seconds": IDLE_SECONDS,
        "longest_stream_seconds": LONGEST_STREAM_SECONDS,
        "restart_wait_seconds": RESTART_WAIT_SECONDS,
        "drain_seconds": DRAIN_SECONDS,
        "engine_keepalive_seconds": ENGINE_KEEPALIVE_SECONDS,
        "gateway_read_seconds": GATEWAY_READ_SECONDS,
        "gateway_pool_seconds": GATEWAY_POOL_SECONDS,
        "gateway_keepalive_seconds": GATEWAY_KEEPALIVE_SECONDS,
        "backend_pool_seconds": BACKEND_POOL_SECONDS,
        "backend_keepalive_seconds": BACKEND_KEEPALIVE_SECONDS,
        "client_header_seconds": CLIENT_HEADER_SECONDS,
        "client_body_seconds": CLIENT_BODY_SECONDS,
        "client_send_seconds": CLIENT_SEND_SECONDS,
        "client_keepalive_seconds": CLIENT_KEEPALIVE_SECONDS,
    }
