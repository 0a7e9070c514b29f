"""What an owner reads when no certificate was issued. Texts are certbot 2.1's and Pebble's own."""

from __future__ import annotations

from typing import Any

import pytest
from acme_problems import acme_problems

HEAD = "Saving debug log to /var/log/letsencrypt/letsencrypt.log\n"
TAIL = (
    "Ask for help or search for solutions at https://community.letsencrypt.org. See the logfile "
    "/var/log/letsencrypt/letsencrypt.log or re-run Certbot with -v for more details.\n"
)
REPORT = """
Certbot failed to authenticate some domains (authenticator: webroot). The Certificate Authority reported these problems:
  Domain: chat.example.org
  Type:   {kind}
  Detail: {detail}

Hint: The Certificate Authority failed to download the temporary challenge files created by Certbot.

Some challenges have failed.
"""  # noqa: E501
UNTRUSTED = (
    "An unexpected error occurred:\nrequests.exceptions.SSLError: HTTPSConnectionPool("
    "host='localhost', port=14000): Max retries exceeded with url: /dir (Caused by SSLError("
    "SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
    "self-signed certificate (_ssl.c:992)')))\n"
)
NO_DNS = (
    "An unexpected error occurred:\nrequests.exceptions.ConnectionError: HTTPSConnectionPool("
    "host='nowhere.invalid', port=443): Max retries exceeded with url: /dir (Caused by "
    "NewConnectionError('<urllib3.connection.HTTPSConnection object at 0x7fa88cbe62d0>: Failed to "
    "establish a new connection: [Errno -2] Name or service not known'))\n"
)
REFUSED = (
    "An unexpected error occurred:\nValueError: Requesting 127.0.0.1/dir: Connection refused\n"
)
TRIPPED = "An unexpected error occurred:\nAttributeError: can't set attribute\n"
WRONG_KEY = (
    "Encountered exception during recovery: certbot.errors.PluginError: Encountered error deleting "
    "TXT record: The peer didn't like the signature we sent\n"
    "Encountered error adding TXT record: The peer didn't like the signature we sent\n"
)
LIMIT = (
    "acme.messages.Error: urn:ietf:params:acme:error:rateLimited :: There were too many requests "
    "of a given type :: too many certificates (5) already issued for this exact set of identifiers "
    "in the last 168h0m0s, retry after 2026-11-27 10:00:00 UTC"
)


def said(text: str) -> dict[str, Any]:
    return {"rc": 1, "stdout": "", "stderr": HEAD + text + TAIL}


@pytest.mark.parametrize(
    ("kind", "detail", "told"),
    [
        ("connection", "could not resolve URL", "let port 80 in"),
        ("dns", "NXDOMAIN looking up A for chat.example.org", "make its DNS records"),
        ("unauthorized", "Non-200 status code from HTTP: returned 404", "lead to another server"),
        ("caa", "CAA record prevents issuance", "CAA record of chat.example.org"),
        ("serverInternal", "Oops", "refused chat.example.org (serverInternal)"),
    ],
)
def test_a_refused_name_is_told_with_what_to_do(kind: str, detail: str, told: str) -> None:
    lines = acme_problems(said(REPORT.format(kind=kind, detail=detail)), ["chat.example.org"])
    assert len(lines) == 2
    assert told in lines[0]
    assert detail in lines[1]


@pytest.mark.parametrize(
    ("text", "log", "told"),
    [
        (UNTRUSTED, "", "tls_acme_ca_file"),
        (NO_DNS, "", "mend DNS and the way out"),
        (REFUSED, "", "mend DNS and the way out"),
        ("An unexpected error occurred:\n" + LIMIT + "\n", "", "rate limit"),
        (TRIPPED, f"Traceback\n{LIMIT}\n", "rate limit"),
        (TRIPPED, "", "certbot failed for a.org, b.org"),
        (
            "Unable to determine base domain for a.org using names: ['a.org']\n",
            "",
            "let certbot in",
        ),
        (WRONG_KEY, "", "let certbot in"),
        (
            WRONG_KEY.replace("like the signature we sent", "know the key we used"),
            "",
            "let certbot in",
        ),
        ("Another instance of Certbot is already running.\n", "", "in a minute"),
    ],
)
def test_other_failures_are_told_too(text: str, log: str, told: str) -> None:
    lines = acme_problems(said(text), ["a.org", "b.org"], log)
    assert told in lines[0]
    assert lines[-1].endswith("letsencrypt.log on the server")
    assert not [line for line in lines if "Ask for help" in line]


def test_what_the_authority_answered_is_shown_where_certbot_trips_over_it() -> None:
    lines = acme_problems(said(TRIPPED), ["a.org"], f"older: {LIMIT}\n{LIMIT}\n")
    assert len([line for line in lines if "retry after 2026-11-27" in line]) == 1


def test_a_certbot_that_cannot_be_run_is_told() -> None:
    lines = acme_problems({"rc": 2, "msg": "[Errno 2] No such file: certbot"}, ["a.org"])
    assert "  [Errno 2] No such file: certbot" in lines
