"""One fault per layer of the live chain, and what the stream check must say of each.

`do` and `undo` are shell commands on the server; `proxy` is a fault of the home-made proxy
(tests/fixtures/faulty_proxy.py), which is then put in front of nginx, where Cloudflare would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from breaking import BACKEND, NGINX, RELOAD, RESTART, keep, restore

SETTINGS = "/etc/millrace/backend/settings.json"
LITELLM = "/etc/millrace/litellm/config.yaml"
RESTART_LITELLM = "systemctl restart millrace-litellm"


@dataclass(frozen=True)
class Fault:
    """A fault, and the culprit and kind that the check must name (None: it must not mind)."""

    name: str
    culprit: str | None
    kind: str | None
    do: str = ""
    undo: str = ""
    proxy: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("--silence=0",)


def in_nginx(name: str, kind: str, *expressions: str, **more: Any) -> Fault:
    """A fault by sed expressions in nginx's configuration."""
    edits = " ".join(f"-e '{expression}'" for expression in expressions)
    do = f"{keep(NGINX)}; sed -i {edits} {NGINX}; nginx -t && {RELOAD}"
    return Fault(name, "nginx", kind, do, f"{restore(NGINX)}; {RELOAD}", **more)


def in_front(name: str, kind: str, proxy: str, *arguments: str, **options: Any) -> Fault:
    """A fault of a proxy in front."""
    more = {"arguments": arguments} if arguments else {}
    return Fault(name, "public", kind, proxy=proxy, options=options, **more)  # type: ignore[arg-type]


def written(file: str, lines: str) -> str:
    """Return the command that writes a file."""
    return f"cat > {file} <<'END'\n{lines}\nEND\n"


# A middleware that reads the whole answer before it sends any of it, as an authentication layer
# does that looks at the body.
HOLDING_MIDDLEWARE = """
class Holds:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        held = []

        async def hold(message):
            held.append(message)
            if not message.get("more_body") and message["type"] == "http.response.body":
                for each in held:
                    await send(each)

        await self.app(scope, receive, hold if scope["type"] == "http" else send)


app = Holds(app)"""

# A guardrail that moderates whole answers: LiteLLM hands it the stream, and it keeps it.
GUARDRAIL = """
from litellm.integrations.custom_guardrail import CustomGuardrail


class Holds(CustomGuardrail):
    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict, response, request_data
    ):
        held = [chunk async for chunk in response]
        for chunk in held:
            yield chunk"""

LOAD_GUARDRAIL = """
[Service]
LoadCredential=break_guardrail.py:/root/break_guardrail.py"""
USE_GUARDRAIL = """
guardrails:
  - guardrail_name: holds
    litellm_params:
      guardrail: break_guardrail.Holds
      mode: post_call
      default_on: true"""
LITELLM_DROPIN = "/etc/systemd/system/millrace-litellm.service.d/99-break.conf"

PARSING_ROUTE = Fault(
    "LiteLLM: the parsing route, a guardrail that holds", "litellm", "whole_response_held",
    f"{keep(SETTINGS)}; sed -i 's#:4100/vllm#:4100#' {SETTINGS}; {keep(LITELLM)}; "
    + written("/root/break_guardrail.py", GUARDRAIL)
    + written("/root/guardrail.yaml", USE_GUARDRAIL)
    + f"cat /root/guardrail.yaml >> {LITELLM}; mkdir -p $(dirname {LITELLM_DROPIN})\n"
    + written(LITELLM_DROPIN, LOAD_GUARDRAIL)
    + f"systemctl daemon-reload; {RESTART_LITELLM}; {RESTART}",
    f"{restore(SETTINGS)}; {restore(LITELLM)}; rm -f {LITELLM_DROPIN} /root/*guardrail*; "
    f"systemctl daemon-reload; {RESTART_LITELLM}; {RESTART}",
)  # fmt: skip


def in_backend(file: str, change: str) -> tuple[str, str]:
    """Return how to change a file of the backend's source, by a shell command, and how to mend it.

    `{}` in the command is the file.
    """
    path = f"{BACKEND}/{file}"
    return f"{keep(path)}; {change.format(path)}\n{RESTART}", f"{restore(path)}; {RESTART}"


SAYS_YES = in_backend("outlet.py", 'sed -i \'/x-accel-buffering/s/b"no"/b"yes"/\' {}')
HOLDS = in_backend("asgi.py", f"cat >> {{}} <<'END'\n{HOLDING_MIDDLEWARE}\nEND")
SWALLOWS = in_backend(
    "answer.py", "sed -i 's/leaving in done/False/; s/{{pump, leaving}}/{{pump}}/' {}"
)
LISTENS = in_nginx("", "", "/proxy_ignore_headers X-Accel/d")

FAULTS = [
    in_nginx("nginx: proxy_buffering on", "batched_bytes",
             "s/proxy_buffering off/proxy_buffering on/"),
    Fault("the upstream sends X-Accel-Buffering: yes, nginx listens", "nginx", "batched_bytes",
          f"{SAYS_YES[0]}; {LISTENS.do}", f"{SAYS_YES[1]}; {LISTENS.undo}"),
    Fault("the upstream sends X-Accel-Buffering: yes, nginx as we set it", None, None, *SAYS_YES),
    in_nginx("nginx: HTTP/1.0 to the upstream", "http_1_0_downgrade",
             "s/proxy_http_version 1.1/proxy_http_version 1.0/"),
    in_nginx("nginx: a cache", "cached",
             "s#^http {#http {\\nproxy_cache_path /var/lib/nginx/break keys_zone=break:1m;#",
             # It keeps nothing that it does not buffer.
             "s/proxy_buffering off/proxy_buffering on/",
             "s/ignore_headers X-Accel-Buffering/ignore_headers X-Accel-Buffering Cache-Control/",
             "s/proxy_cache off;/proxy_cache break; proxy_cache_methods GET HEAD POST; "
             "proxy_cache_valid 200 5m; proxy_cache_key $request_uri$request_body;/"),
    in_nginx("nginx: another content type", "content_type_changed",
             "s#location /v1/ {#& proxy_hide_header Content-Type; "
             "add_header Content-Type text/html;#"),
    in_nginx("nginx: cuts after 20 s of silence", "cut_on_silence",
             "s/proxy_read_timeout .*s;/proxy_read_timeout 20s;/", arguments=("--silence=32",)),
    PARSING_ROUTE,
    Fault("backend: middleware that reads whole answers", "backend", "whole_response_held",
          *HOLDS),
    Fault("backend: disconnects are swallowed", "backend", "disconnect_ignored", *SWALLOWS,
          arguments=("--silence=0", "--deep=leave")),
    in_front("in front: gzip that does not flush", "compression_held", "gzip_hold"),
    in_front("in front: a cache", "cached", "cache"),
    in_front("in front: buffers 16 KB", "batched_bytes", "buffer_bytes", n=16384),
    in_front("in front: holds until the end", "whole_response_held", "hold_all"),
    in_front("in front: coalesces for 200 ms", "batched_time", "coalesce", ms=200),
    in_front("in front: Nagle, 40 ms", "batched_time", "nagle", ms=40),
    in_front("in front: every event 40 ms late", "delayed", "delay", ms=40),
    in_front("in front: a chunked body cut short", "truncated", "truncate"),
    in_front("in front: HTTP/1.0", "http_1_0_downgrade", "http10"),
    in_front("in front: nothing before the first token", "first_byte_held", "hold_headers"),
    in_front("in front: cuts after 20 s of silence", "cut_on_silence", "cut_on_silence",
             "--silence=32", seconds=20),
    in_front("in front: disconnects are swallowed", "disconnect_ignored", "ignore_disconnect",
             "--silence=0", "--deep=leave"),
]  # fmt: skip
