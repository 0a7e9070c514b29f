"""What the edge does, as data: how the documentation has it, and one switch per misbehaviour.

Sources, all under developers.cloudflare.com: fundamentals/reference/http-headers (what is sent to
an origin), cache/concepts/default-cache-behavior (what is kept), speed/optimization/content/
compression (what is compressed), support/troubleshooting/cloudflare-5xx-errors (520 to 526).
"""

from __future__ import annotations

from dataclasses import dataclass

_TYPES = """
    text/html text/richtext text/plain text/css text/x-script text/x-component text/x-java-source
    text/x-markdown application/javascript application/x-javascript text/javascript text/js
    image/x-icon image/vnd.microsoft.icon text/xml application/xml application/rss+xml
    application/vnd.api+json application/json application/xhtml+xml font/ttf font/otf font/x-woff
    image/svg+xml application/vnd.ms-fontobject application/wasm application/manifest+json
    application/ld+json application/graphql+json application/geo+json
"""
COMPRESSED_TYPES = frozenset(_TYPES.split())
COMPRESSED_STATUSES = frozenset({200, 403, 404})
LEAST_COMPRESSED_BYTES = 50

_EXTENSIONS = """
    7z avi avif apk bin bmp bz2 class css csv doc docx dmg ejs eot eps exe flac gif gz ico iso jar
    jpg jpeg js mid midi mkv mp3 mp4 ogg otf pdf pict pls png ppt pptx ps rar svg svgz swf tar tif
    tiff ttf webm webp woff woff2 xls xlsx zip zst
"""
KEPT_EXTENSIONS = frozenset(_EXTENSIONS.split())
"""Names, not types, decide what is kept: HTML and JSON are not, unless a rule says so."""

KEPT_SECONDS = {200: 7200, 206: 7200, 301: 7200, 302: 1200, 303: 1200, 404: 180, 410: 180}
"""How long an answer is kept whose origin does not say."""


@dataclass(frozen=True)
class Behaviour:
    """Every switch of the edge; as it stands, a zone that was set up for streams."""

    read_timeout_seconds: float = 100.0
    """The longest silence of an origin; an answer ends then, with 524 if it had not begun."""
    compress_events: bool = False
    """A compression rule that names text/event-stream; the origin's no-transform still holds."""
    drop_no_transform: bool = False
    """A rule that rewrites Cache-Control on its way, so that nothing forbids transforming."""
    buffer_answers: bool = False
    """response_body_buffering other than none: an answer is read whole before it goes on."""
    keep_everything: bool = False
    """A cache rule that makes everything eligible and overrides what the origin says."""
    allowed_paths: tuple[str, ...] = ()
    """Prefixes that a firewall rule lets through, everything else is 403; none: all paths."""
    keep_visitor_headers: bool = False
    """Let a visitor's own CF-Connecting-IP stand, as no real edge does."""
