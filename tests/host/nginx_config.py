"""nginx's configuration as a server's own nginx reads it, and what in it holds streams back."""

from __future__ import annotations

from gixy.parser.nginx_parser import NginxParser
from servers import Server

STREAMING = {
    "proxy_buffering": "off",
    "proxy_cache": "off",
    "gzip": "off",
    "proxy_http_version": "1.1",
    "proxy_ignore_headers": "X-Accel-Buffering",
}
"""What must hold, written there or inherited, wherever a request is passed on; a word of each."""


def holding_back(server: Server) -> tuple[set[str], set[str]]:
    """Return the locations that pass requests on, and where and how one may hold bytes back."""
    root = NginxParser().parse_string(server.run("nginx -T 2>/dev/null"))
    names: set[str] = set()
    wrong: set[str] = set()
    for passing in root.find_recursive("proxy_pass"):
        place = next(block for block in passing.parents if block.name == "location")
        name = " ".join(place.args)
        names.add(name)
        for setting, word in STREAMING.items():
            # The nearest counts, and takes nothing from those around it.
            found = next(passing.find_directives_in_scope(setting), None)
            if found is None or word not in found.args:
                told = " ".join(found.args) if found else "not set"
                wrong.add(f"location {name}: {setting} {told}")
    return names, wrong
