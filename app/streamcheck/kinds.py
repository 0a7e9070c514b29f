"""The kinds of break, and what mends each at each hop: data only."""

from __future__ import annotations

from collections.abc import Mapping

KINDS: dict[str, str] = {
    "cached": "an answer is kept and given again",
    "truncated": "the answer ends before its end",
    "cut_on_silence": "the stream is cut when nothing comes for a while",
    "error_in_stream": "an error comes in the stream, under status 200",
    "request_refused": "some ways of asking are refused",
    "compression_held": "a compressor gathers what it should pass on",
    "whole_response_held": "everything comes at once, at the end",
    "batched_bytes": "events come in portions of so many bytes",
    "batched_time": "events come in portions, every so many milliseconds",
    "first_byte_held": "nothing comes before the first token",
    "slow_hop": "the hop carries less than the hop behind gives",
    "delayed": "every event comes later than it must",
    "events_lost": "events are missing, doubled or in another order",
    "bytes_changed": "the bytes are not those that were sent",
    "content_type_changed": "the stream is not called text/event-stream",
    "http_1_0_downgrade": "HTTP/1.0 is spoken somewhere on the way",
    "disconnect_ignored": "a client that leaves does not free the engine",
    "slow_reader_blocks": "one slow reader slows the others",
}
"""What is wrong, most telling first: of several findings at one hop the first names the kind."""

PORTIONS = ("whole_response_held", "batched_bytes", "batched_time")

NGINX = "/etc/nginx/nginx.conf"
BACKEND = "app/backend"
LITELLM = "/etc/millrace/litellm/config.yaml"
VLLM = "/etc/millrace/vllm/main.yaml"

_NGINX_BUFFERING = (
    "proxy_buffering off; and proxy_ignore_headers X-Accel-Buffering;", NGINX,
    "nginx gathers an upstream's answer in buffers unless it is told not to, and an upstream's "
    "X-Accel-Buffering: yes turns that back on",
)  # fmt: skip
_NODELAY = (
    "TCP_NODELAY on every connection (nginx: tcp_nodelay on; uvicorn: a socket of its real family)",
    "", "Nagle's algorithm holds a small write until the last one is acknowledged, 40 ms as a rule",
)  # fmt: skip
_GUARDRAIL = (
    "the /vllm/ pass-through as the backend's upstream_url, and no guardrail that moderates whole "
    "answers (streaming_buffer_until_moderated: false)", LITELLM,
    "LiteLLM's parsing route hands an answer to guardrails, which may keep it until it is complete",
)  # fmt: skip
_MIDDLEWARE = (
    "pure ASGI middleware that hands each body message on", BACKEND,
    "middleware that reads or wraps the response (BaseHTTPMiddleware among it) holds the stream",
)  # fmt: skip

REMEDIES: Mapping[tuple[str, str], tuple[str, str, str]] = {
    ("vllm", "batched_time"): (
        "--stream-interval 1", VLLM,
        "vLLM may give several tokens at a time: by that flag, or, which is no fault, when "
        "speculative decoding guesses well",
    ),
    ("vllm", "cut_on_silence"): (
        "sse-keep-alive-interval: 15", VLLM, "comment lines while a request queues or prefills",
    ),
    ("vllm", "error_in_stream"): (
        "journalctl -u millrace-vllm@main", "", "the engine failed while it answered",
    ),
    ("litellm", "whole_response_held"): _GUARDRAIL,
    ("litellm", "batched_bytes"): _GUARDRAIL,
    ("litellm", "batched_time"): _GUARDRAIL,
    ("litellm", "truncated"): (
        "the /vllm/ pass-through as the backend's upstream_url", LITELLM,
        "the parsing route stops after 100 equal chunks and at its own timeouts",
    ),
    ("litellm", "cached"): ("no cache under litellm_settings", LITELLM, "chats must not be kept"),
    ("litellm", "slow_hop"): (
        "more workers, or the /vllm/ pass-through", LITELLM,
        "the parsing route costs about a millisecond of CPU for every token",
    ),
    ("litellm", "disconnect_ignored"): (
        "LITELLM_WORKER_STARTUP_HOOKS=gateway.hooks:install",
        "/etc/systemd/system/millrace-litellm.service",
        "without it a caller who leaves early leaves the engine working",
    ),
    ("backend", "whole_response_held"): _MIDDLEWARE,
    ("backend", "batched_bytes"): _MIDDLEWARE,
    ("backend", "batched_time"): _MIDDLEWARE,
    ("backend", "disconnect_ignored"): (
        "the upstream held in `async with`, and closed when the client leaves", BACKEND,
        "a loop that never waits runs on after its client has gone, and the engine with it",
    ),
    ("nginx", "whole_response_held"): _NGINX_BUFFERING,
    ("nginx", "batched_bytes"): _NGINX_BUFFERING,
    ("nginx", "batched_time"): _NODELAY,
    ("nginx", "compression_held"): (
        "gzip off; in the stream's location", NGINX,
        "a compressor gathers bytes before it gives any",
    ),
    ("nginx", "cached"): (
        "proxy_cache off; in the stream's location", NGINX, "an answer belongs to one reader",
    ),
    ("nginx", "http_1_0_downgrade"): (
        'proxy_http_version 1.1; and proxy_set_header Connection "";', NGINX,
        "nginx speaks HTTP/1.0 to its upstream unless it is told otherwise",
    ),
    ("nginx", "cut_on_silence"): (
        "proxy_read_timeout and proxy_send_timeout above the longest silence", NGINX,
        "nginx ends an upstream's answer after 60 s without a byte unless it is told otherwise",
    ),
    ("nginx", "disconnect_ignored"): (
        "proxy_ignore_client_abort off;", NGINX, "it tells nginx to go on for a client who left",
    ),
    ("cloudflare", "compression_held"): (
        "Cache-Control: no-transform from the origin, or no compression of text/event-stream",
        "Cloudflare: Rules, Compression", "compressing at the edge gathers bytes",
    ),
    ("cloudflare", "cached"): (
        "a cache rule that bypasses the API's paths", "Cloudflare: Rules, Cache Rules",
        "the edge keeps what it may keep",
    ),
    ("cloudflare", "whole_response_held"): (
        "response_body_buffering: none", "Cloudflare: Rules, Configuration Rules",
        "the edge can read a whole answer before it passes it on",
    ),
    ("cloudflare", "cut_on_silence"): (
        "a heartbeat every 15 s", "heartbeat_seconds in the plan",
        "the edge ends an answer after 100 s without a byte (status 524)",
    ),
}  # fmt: skip
"""(hop, kind) to (setting, file, why)."""

ANYWHERE: Mapping[str, tuple[str, str]] = {
    "cached": ("turn caching off for the API's paths", "an answer belongs to one reader"),
    "truncated": (
        "lift its limits on a response's size and duration", "something ends the answer early",
    ),
    "cut_on_silence": (
        "raise its idle or read timeout above 30 s, and keep heartbeats on",
        "a hop that waits less than two heartbeats ends a stream when one is late",
    ),
    "compression_held": (
        "turn compression off for text/event-stream, or flush after every write",
        "a compressor gathers bytes before it gives any",
    ),
    "whole_response_held": (
        "turn response buffering off (Apache: ProxyPass … flushpackets=on; Caddy: flush_interval "
        "-1; HAProxy: no option http-buffer-request, no body inspection; nginx: proxy_buffering "
        "off)",
        "it reads the whole answer before it passes any of it on",
    ),
    "batched_bytes": (
        "turn response buffering off (Apache: ProxyPass … flushpackets=on; Caddy: flush_interval "
        "-1; nginx: proxy_buffering off)",
        "it fills a buffer before it passes anything on",
    ),
    "batched_time": (
        "turn TCP_NODELAY on and any flush timer off (HAProxy: option http-no-delay)",
        "at 40 ms it is Nagle's algorithm, at 200 ms often a corked socket, and else a timer that "
        "gathers writes",
    ),
    "first_byte_held": (
        "pass the head and comments on as they come", "heartbeats must reach the client",
    ),
    "slow_hop": ("give it more bandwidth or CPU", "it carries less than it is given"),
    "delayed": ("turn TCP_NODELAY on, and look for a delay that is meant", "it waits on purpose"),
    "events_lost": ("turn off what filters or rewrites the body", "events must pass as they are"),
    "bytes_changed": ("turn off what filters or rewrites the body", "events must pass as they are"),
    "content_type_changed": (
        "pass the Content-Type on", "only text/event-stream is read as a stream",
    ),
    "http_1_0_downgrade": (
        "speak HTTP/1.1 to both sides", "HTTP/1.0 has no chunks: a cut answer looks complete",
    ),
    "disconnect_ignored": (
        "close the upstream's connection when the client leaves",
        "else the engine works for nobody, and others wait",
    ),
    "slow_reader_blocks": (
        "give each connection its own buffer and its own task", "readers must not wait in line",
    ),
    "error_in_stream": ("read its log", "it failed while it answered"),
    "request_refused": ("read its log", "it refuses what its other ways accept"),
}  # fmt: skip


def remedy(hop: str, kind: str, server: str) -> dict[str, str]:
    """Return the likely setting, its file (perhaps empty) and why.

    `server` is the Server header of a hop that is not ours; what it says is only used to find
    better words.
    """
    known = REMEDIES.get((hop, kind))
    if known is None and hop not in ("vllm", "litellm", "backend", "nginx"):
        if "cloudflare" in server.lower():
            known = REMEDIES.get(("cloudflare", kind))
        elif "nginx" in server.lower():
            known = REMEDIES.get(("nginx", kind))
            known = known and (known[0], "", known[2])
    if known is None:
        known = (ANYWHERE[kind][0], "", ANYWHERE[kind][1])
    return dict(zip(("setting", "file", "why"), known, strict=True))
