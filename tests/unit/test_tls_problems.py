"""Senseless settings of the certificate are refused in a line each, before anything is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tls_problems import tls_problems

ACME: dict[str, Any] = {"tls_source": "acme", "tls_domains": ["chat.example.org"]}
DNS = {
    **ACME,
    "tls_acme_challenge": "dns-01",
    "tls_acme_dns_plugin": "cloudflare",
    "tls_acme_dns_credentials": "# a comment\ndns_cloudflare_api_token = secret-token\n",
}
PEM = "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"
FILES = {
    "tls_source": "files",
    "tls_domains": ["chat.example.org"],
    "tls_files_certificate": PEM,
    "tls_files_key": "-----BEGIN PRIVATE KEY-----\nsecret-key\n-----END PRIVATE KEY-----\n",
}
ORIGIN = {
    "tls_source": "cloudflare_origin",
    "tls_domains": ["chat.example.org"],
    "millrace_edge": "cloudflare",
    "cloudflare_zone": "example.org",
    "tls_origin_api_token": "secret-token",
}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tls_domains": ["chat.example.org", "192.0.2.1", "2001:db8::1", "*.example.org", "host"]},
        ACME,
        {**ACME, "tls_acme_email": "a@example.org", "tls_acme_staging": True},
        {**ACME, "tls_acme_directory": "https://ca.internal/acme/directory"},
        {**ACME, "millrace_edge": "cloudflare", "nginx_http_port": 80},
        DNS,
        {**DNS, "tls_domains": ["chat.example.org", "*.example.org"], "nginx_http_port": 8080},
        {**DNS, "millrace_edge": "tunnel"},
        ORIGIN,
        {**ORIGIN, "millrace_edge": "tunnel"},
        FILES,
        {**FILES, "tls_files_on": "server", "tls_files_certificate": "/etc/pki/a.crt"},
    ],
)
def test_sensible_settings_pass(settings: dict[str, Any]) -> None:
    assert tls_problems(settings) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tls_domains": ["https://chat.example.org"]}, "is no name such as"),
        ({"tls_domains": ["chat.example.org/path"]}, "is no name such as"),
        ({"tls_domains": ["chat.example.org:8443"]}, "is no name such as"),
        ({"tls_domains": ["chat example.org"]}, "is no name such as"),
        ({"tls_source": "acme"}, "tls_domains: empty"),
        ({**ORIGIN, "tls_domains": []}, "tls_domains: empty"),
        ({**ORIGIN, "millrace_edge": "direct"}, "only Cloudflare trusts"),
        ({**ORIGIN, "cloudflare_zone": ""}, "cloudflare_zone: missing"),
        ({**ORIGIN, "tls_origin_api_token": ""}, "vault_cloudflare_api_token: missing"),
        ({**DNS, "tls_domains": ["*.example.org"]}, "tls_domains: empty"),
        ({**ACME, "tls_domains": ["chat.example.org", "192.0.2.1"]}, "the address 192.0.2.1"),
        ({**ACME, "tls_domains": ["chat.example.org", "host"]}, "host is no name of the public"),
        ({**ACME, "tls_domains": ["chat.example.org", "*.example.org"]}, "dns-01"),
        ({**ACME, "tls_acme_email": "admin"}, "tls_acme_email: admin is no address"),
        ({**ACME, "tls_acme_staging": True, "tls_acme_directory": "https://ca/"}, "give up one"),
        ({**ACME, "nginx_http_port": 8080}, "asks at port 80, not 8080"),
        ({**ACME, "millrace_edge": "tunnel"}, "behind a tunnel"),
        ({**DNS, "tls_acme_dns_plugin": ""}, "tls_acme_dns_plugin"),
        ({**DNS, "tls_acme_dns_plugin": "ovh"}, "holds no line dns_ovh_..."),
        ({**DNS, "tls_acme_dns_credentials": ""}, "vault_tls_acme_dns_credentials"),
        ({**DNS, "tls_acme_dns_credentials": "secret-token"}, "vault_tls_acme_dns_credentials"),
        ({**FILES, "tls_domains": []}, "tls_domains: empty"),
        ({**FILES, "tls_files_key": ""}, "tls_files_key: missing"),
        ({**FILES, "tls_files_key": "secret-key\nsecret-key"}, "neither a path nor PEM"),
        ({**FILES, "tls_files_certificate": "a.crt"}, "the whole path"),
        ({**FILES, "tls_files_certificate": "/no/such.crt"}, "there is no file /no/such.crt"),
    ],
)
def test_senseless_settings_are_told_in_one_line(settings: dict[str, Any], told: str) -> None:
    (problem,) = tls_problems(settings)
    assert told in problem
    assert "secret" not in problem
    assert "\n" not in problem


def test_files_on_this_machine_are_looked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.crt"
    settings = {**FILES, "tls_files_certificate": str(file)}
    assert len(tls_problems(settings)) == 1
    file.write_text(PEM)
    assert tls_problems(settings) == []
