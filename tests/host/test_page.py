"""The chat page as nginx serves it."""

from __future__ import annotations

import gzip
import http.client
import re
import ssl

from servers import Server


def fetch(server: Server, path: str, encoding: str = "") -> tuple[int, dict[str, str], bytes]:
    wire = http.client.HTTPSConnection(
        server.address, timeout=10, context=ssl._create_unverified_context()
    )
    try:
        wire.request("GET", path, headers={"Accept-Encoding": encoding} if encoding else {})
        answer = wire.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, headers, answer.read()
    finally:
        wire.close()


def assets(server: Server) -> list[str]:
    return re.findall(r'(?:src|href)="([^"]+)"', fetch(server, "/")[2].decode())


def test_the_page_is_there_and_confined(server: Server) -> None:
    code, headers, body = fetch(server, "/")
    assert code == 200
    assert headers["content-type"] == "text/html"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-cache"
    assert b"<style" not in body
    assert re.findall(rb"<script(?![^>]* src=)", body) == []
    found = assets(server)
    assert len(found) == 3
    assert all(path.startswith("/assets/") for path in found), "something from elsewhere"


def test_assets_are_kept_and_compressed(server: Server) -> None:
    for path in assets(server):
        code, headers, plain = fetch(server, path)
        assert code == 200
        assert headers["cache-control"] == "public, max-age=31536000, immutable"
        assert headers["x-content-type-options"] == "nosniff"
        _, headers, packed = fetch(server, path, "gzip")
        assert headers["content-encoding"] == "gzip"
        assert gzip.decompress(packed) == plain
        assert "javascript" in headers["content-type"] or not path.endswith(".js")


def test_the_pages_files_are_roots_and_everybodys(server: Server) -> None:
    wrong = server.run(
        "find /opt/millrace/web/current/"
        " ! -type l \\( ! -user root -o -perm /022 -o ! -perm -004 \\)"
    )
    assert wrong == ""
