"""Find settings of the certificate that make no sense together, before a run changes anything."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?", re.I)
EMAIL = re.compile(r"[^@\s,]+@[^@\s,]+\.[^@\s,]+")
LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"


def is_address(name: str) -> bool:
    """Tell an IP address from a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def name_problems(names: list[str]) -> list[str]:
    """Return which of tls_domains are no names."""
    return [
        f"tls_domains: {name!r} is no name such as chat.example.org (no https://, port or path)."
        for name in names
        if not NAME.fullmatch(name) and not is_address(name)
    ]


def http_problems(settings: Mapping[str, Any], wild: list[str]) -> list[str]:
    """Return why an authority could not fetch a file from this server."""
    problems = []
    if wild:
        problems.append(
            f"tls_domains: {wild[0]} can only be proved through its DNS: set "
            "tls_acme_challenge: dns-01."
        )
    port = settings.get("nginx_http_port", 80)
    if str(port) != "80":
        problems.append(
            f"nginx_http_port: an authority asks at port 80, not {port}: set 80, or "
            "tls_acme_challenge: dns-01."
        )
    if settings.get("millrace_edge") == "tunnel":
        problems.append(
            "tls_acme_challenge: behind a tunnel no port is open for an authority: set dns-01, or "
            "leave tls_source at self_signed, for visitors see Cloudflare's certificate."
        )
    return problems


def dns_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return why certbot could not write into the DNS. The credentials never appear."""
    plugin = settings.get("tls_acme_dns_plugin") or ""
    credentials = settings.get("tls_acme_dns_credentials") or ""
    if not plugin:
        return [
            "tls_acme_dns_plugin: who serves the names' DNS? tls_acme_challenge dns-01 needs it."
        ]
    if not re.search(rf"^\s*dns_{plugin}_\w+\s*=\s*\S", str(credentials), re.M):
        return [
            f"vault_tls_acme_dns_credentials: holds no line dns_{plugin}_... = ..., as the "
            f"credentials file of certbot-dns-{plugin} has."
        ]
    return []


def acme_problems(settings: Mapping[str, Any], names: list[str]) -> list[str]:
    """Return why no certificate can be asked of an authority."""
    problems = [
        f"tls_domains: an authority is asked for names, not for the address {name}: take it out."
        for name in names
        if is_address(name)
    ]
    problems += [
        f"tls_domains: {name} is no name of the public DNS."
        for name in names
        if NAME.fullmatch(name) and "." not in name
    ]
    email = settings.get("tls_acme_email") or ""
    if email and not EMAIL.fullmatch(email):
        problems.append(f"tls_acme_email: {email} is no address such as admin@example.org.")
    directory = settings.get("tls_acme_directory", LETS_ENCRYPT)
    if settings.get("tls_acme_staging") in (True, "true", "yes") and directory != LETS_ENCRYPT:
        problems.append(
            "tls_acme_staging: it stands for Let's Encrypt's staging, and tls_acme_directory for "
            "another authority: give up one of them."
        )
    if settings.get("tls_acme_challenge", "http-01") == "dns-01":
        return problems + dns_problems(settings)
    return problems + http_problems(settings, [name for name in names if "*" in name])


def files_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return which of the owner's files are not there. A key given as text never appears."""
    problems = []
    for setting in ("tls_files_certificate", "tls_files_key"):
        value = str(settings.get(setting) or "")
        if not value:
            problems.append(f"{setting}: missing: a path, or the PEM text itself.")
        elif "\n" in value or "-----BEGIN" in value:
            if "-----BEGIN" not in value:
                problems.append(f"{setting}: neither a path nor PEM text.")
        elif not value.startswith("/"):
            problems.append(f"{setting}: give the whole path, from / on.")
        elif settings.get("tls_files_on", "controller") == "controller" and not (
            Path(value).is_file()
        ):
            problems.append(
                f"{setting}: there is no file {value} on this machine (tls_files_on: server, if it "
                "is on the server)."
            )
    return problems


def origin_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return why Cloudflare's Origin CA could not be asked, or to what use. No token appears."""
    problems = []
    if settings.get("millrace_edge", "direct") == "direct":
        problems.append(
            "tls_source: only Cloudflare trusts its Origin CA, and visitors come straight here: "
            "set millrace_edge: cloudflare, or tls_source: acme."
        )
    if not settings.get("cloudflare_zone"):
        problems.append("cloudflare_zone: missing: whose certificate is asked for?")
    if not settings.get("tls_origin_api_token"):
        problems.append(
            "vault_cloudflare_api_token: missing: tls_source cloudflare_origin asks Cloudflare for "
            "the certificate."
        )
    return problems


def tls_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return one line per problem, empty when all is well. `settings`: what was set, by name."""
    source = settings.get("tls_source", "self_signed")
    given = settings.get("tls_domains") or []
    names = [str(name) for name in given] if isinstance(given, list) else []
    problems = name_problems(names)
    if source == "self_signed":
        return problems
    if not [name for name in names if "*" not in name]:
        problems.append(
            f"tls_domains: empty: tls_source {source} needs the name that people reach the service "
            "by."
        )
    if source == "acme":
        problems += acme_problems(settings, names)
    if source == "files":
        problems += files_problems(settings)
    if source == "cloudflare_origin":
        problems += origin_problems(settings)
    return problems


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"tls_problems": tls_problems}
