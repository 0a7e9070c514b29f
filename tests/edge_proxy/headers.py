"""What is said to the origin in a visitor's name, and what of its answer goes back."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from .behaviour import Behaviour

Headers = list[tuple[str, str]]

OF_THE_HOP = {
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding",
    "upgrade", "host",
}  # fmt: skip
OURS = {
    "accept-encoding", "cdn-loop", "cf-connecting-ip", "cf-ipcountry", "cf-ray", "cf-visitor",
    "cf-worker", "true-client-ip", "x-forwarded-for", "x-forwarded-proto",
}  # fmt: skip
"""Whatever a visitor says in these names is not what the origin reads."""


def ray() -> str:
    """Return an identifier of one request, with the place it came in at."""
    return f"{secrets.token_hex(8)}-LHR"


def value(headers: Iterable[tuple[str, str]], name: str) -> str:
    """Return a header's value; empty without one."""
    return next((text for known, text in headers if known == name), "")


def to_origin(visitor: Headers, address: str, ray_id: str, behaviour: Behaviour) -> Headers:
    """Return the request's headers for the origin; names are in small letters."""
    asked = [(name, text) for name, text in visitor if name not in OF_THE_HOP | OURS]
    came_by = value(visitor, "x-forwarded-for")
    claimed = value(visitor, "cf-connecting-ip") if behaviour.keep_visitor_headers else ""
    return [
        *asked,
        ("accept-encoding", "br, gzip"),
        ("cdn-loop", "cloudflare; loops=1"),
        ("cf-connecting-ip", claimed or address),
        ("cf-ipcountry", "GB"),
        ("cf-ray", ray_id),
        ("cf-visitor", '{"scheme":"https"}'),
        # Appended to, not replaced: an origin must not believe its first entry.
        ("x-forwarded-for", f"{came_by}, {address}" if came_by else address),
        ("x-forwarded-proto", "https"),
    ]


def to_visitor(origin: Headers, ray_id: str, kept: str, behaviour: Behaviour) -> Headers:
    """Return the answer's headers for the visitor; `kept` is what the cache says of it."""
    told = [(name, text) for name, text in origin if name not in OF_THE_HOP | {"server"}]
    if behaviour.drop_no_transform:
        told = [
            (name, _without_no_transform(text) if name == "cache-control" else text)
            for name, text in told
        ]
    return [*told, ("server", "cloudflare"), ("cf-ray", ray_id), ("cf-cache-status", kept)]


def directives(headers: Headers) -> dict[str, str]:
    """Return what Cache-Control says, by directive."""
    parts = [part.strip() for part in value(headers, "cache-control").lower().split(",")]
    return {name: text for name, _, text in (part.partition("=") for part in parts) if name}


def _without_no_transform(text: str) -> str:
    parts = [part.strip() for part in text.split(",")]
    return ", ".join(part for part in parts if part.lower() != "no-transform")
