"""Say from what certbot printed why there is no certificate, and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

LAST_LINES = 4
LOG = "/var/log/letsencrypt/letsencrypt.log"

# What the authority reported for one name: certbot prints `Domain:`, `Type:` and `Detail:` lines.
REPORT = re.compile(r"Domain: +(\S+)\s+Type: +(\S+)\s+Detail: +(.+)")

# What the authority answered, as certbot logs it. Debian 12's certbot trips over it when it prints
# it ("AttributeError: can't set attribute").
ANSWER = re.compile(r"urn:ietf:params:acme:error:(\w+) :: (.+)")

# Kinds of errors that blame a name: RFC 8555, section 6.7.
KINDS = {
    "connection": "the authority did not reach port 80 of {name}: its DNS records (A and AAAA) "
    "have to lead to this server, and every firewall before it has to let port 80 in. Where that "
    "cannot be, set tls_acme_challenge: dns-01.",
    "dns": "the authority found no address or record for {name}: make its DNS records (A, and AAAA "
    "only if the server has IPv6), or correct tls_domains; new records may take minutes.",
    "unauthorized": "what the authority found for {name} is not what was put there: its DNS "
    "records (A and AAAA) lead to another server, or another web server or proxy answers before "
    "nginx (dns-01: raise tls_acme_dns_wait_seconds).",
    "caa": "the CAA record of {name} does not allow this authority: change the record, or "
    "tls_acme_directory.",
    "rejectedIdentifier": "the authority issues nothing for {name}: correct tls_domains.",
    "malformed": "the authority takes {name} for no name: correct tls_domains.",
}

# What is said where no name is to blame: the first that matches tells.
SAYINGS = (
    (
        r"error:rateLimited|too many (certificates|failed|requests|new orders|registrations)",
        "The authority's rate limit is reached. Nothing mends it but time: try again after what it "
        "says below, and try things out with tls_acme_staging: true.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED",
        "The directory's own certificate is not trusted: give the file of its authority as "
        "tls_acme_ca_file.",
    ),
    (
        r"Connection refused|Name or service not known|Temporary failure in name resolution|"
        r"[Tt]imed out|Network is unreachable|Max retries exceeded",
        "The server does not reach the authority's directory: mend DNS and the way out to port "
        "443, or correct tls_acme_directory.",
    ),
    (
        r"error:(invalidContact|unsupportedContact|invalidEmail)|not a valid e-?mail",
        "The authority does not take tls_acme_email: correct it or leave it empty.",
    ),
    (
        r"Unable to determine (zone|base domain)|Error determining zone|[Zz]one_id|"
        r"Invalid (request headers|access token)|NOTAUTH|BADKEY|BADSIG|REFUSED|credentials|"
        r"peer didn't (know the key|like the signature)",
        "The DNS did not let certbot in: check tls_acme_dns_plugin and "
        "vault_tls_acme_dns_credentials, which have to reach the zone of every name.",
    ),
    (
        r"Another instance of Certbot is already running",
        "certbot is renewing just now: try again in a minute.",
    ),
    (
        r"error:(\w+)",
        "The authority refused; what it says is below.",
    ),
)


def acme_problems(done: Mapping[str, Any], names: Sequence[str], log: str = "") -> list[str]:
    """Return what was wrong, a line each with how to mend it.

    `done`: what the task that ran certbot returned (`stdout`, `stderr`, or `msg` where it could not
    be run). `names`: what a certificate was asked for. `log`: the end of certbot's log.
    """
    text = "\n".join(str(done.get(part) or "") for part in ("stdout", "stderr"))
    if not text.strip():
        text = str(done.get("msg") or "certbot said nothing")
    lines = []
    for name, kind, detail in REPORT.findall(text):
        told = KINDS.get(kind, "the authority refused {name} ({kind}).")
        lines += [told.format(name=name, kind=kind), f"  It says: {detail.strip()}"]
    if lines:
        return lines
    said = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in said if not line.startswith(("Saving debug log", "Ask for help"))]
    said = said[-LAST_LINES:] + [found[0].strip() for found in ANSWER.finditer(log)][-1:]
    told = next((told for pattern, told in SAYINGS if re.search(pattern, "\n".join(said))), "")
    return [
        told or f"certbot failed for {', '.join(names)}:",
        *(f"  {line}" for line in said),
        f"  All of it: {LOG} on the server",
    ]


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"acme_problems": acme_problems}
