"""Nothing that git would take looks like a secret.

Patterns of our own: the scanners that are kept well are programs in Go, and of those on PyPI the
best known had its last release in 2024.
"""

from __future__ import annotations

import math
import re
import secrets
import string
import subprocess

import pytest
from unit_kit import ROOT

FORMS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}",
    "a token of Hugging Face": r"\bhf_[A-Za-z0-9]{30,}\b",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{60,})\b",
    "a key of OpenAI's form": r"\bsk-(?:proj-)?[A-Za-z0-9_-]{32,}",
    "a token of Cloudflare": r"\b(?:cfat|cfut|cfk)_[A-Za-z0-9]{30,}\b",
    "a key of Cloudflare's Origin CA": r"\bv1\.0-[a-f0-9]{24}-[a-f0-9]{100,}\b",
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a token of Slack": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a signed token": r"\beyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{20,}",
    "a vault": r"^\$ANSIBLE_VAULT;",
    "a password in an address": r"\b[a-z+]+://[^\s/:@'\"{}<>$]+:(?!secret@)[^\s/:@'\"{}<>$]{6,}@",
}  # fmt: skip
# Words of letters and digits as random as a key: at least four bits a character, digits among them.
WORD = re.compile(r"(?<![\w+/.-])[A-Za-z0-9_+-]{32,}(?![\w+/.-])")
RANDOM_BITS = 4.0
# Digests of what is downloaded, and pictures.
LOCKS = re.compile(r"^requirements/.*\.txt$|package-lock\.json$|\.(png|ico|woff2|svg)$")


def tracked() -> list[str]:
    """Return what git has or would take."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def bits(word: str) -> float:
    """Return Shannon's entropy of a word, in bits a character."""
    shares = [word.count(c) / len(word) for c in set(word)]
    return -sum(share * math.log2(share) for share in shares)


def is_random(word: str) -> bool:
    """Whether a word looks like a key and not like a name or a digest in hexadecimal."""
    classes = (r"[a-z]", r"[A-Z]", r"\d")
    return all(re.search(c, word) for c in classes) and bits(word) >= RANDOM_BITS


def suspects(text: str) -> list[str]:
    """Return what in a text looks like a secret, and as what."""
    found = [(what, m[0]) for what, form in FORMS.items() for m in re.finditer(form, text, re.M)]
    found += [("a random word", word) for word in WORD.findall(text) if is_random(word)]
    return [f"{what}: {seen[:60]}" for what, seen in found]


def made(length: int) -> str:
    """Return letters and digits as the first run makes a key, a digit and both cases among them."""
    letters = string.ascii_letters + string.digits
    return "".join(secrets.choice(letters) for _ in range(length - 3)) + "a1Z"


@pytest.mark.parametrize(
    ("before", "length", "after"),
    [("key: ", 48, "\n"), ("sk-", 48, ""), ("hf_", 34, " "), ("token=", 40, "&"),
     ("-----BEGIN PRIVATE KEY-----\n", 64, "\n"), ("redis://me:", 12, "@db/0")],
)  # fmt: skip
def test_what_is_planted_is_found(before: str, length: int, after: str) -> None:
    for _ in range(50):
        assert suspects(f"x {before}{made(length)}{after}")


@pytest.mark.parametrize(
    "text",
    ["sha256:" + "0123456789abcdef" * 4, "test_a_name_that_is_long_and_has_2_figures_in_it",
     "/opt/millrace/backend/releases/0123456789abcdef/venv/lib", "redis://localhost:6379/0"],
)  # fmt: skip
def test_what_is_none_is_not(text: str) -> None:
    assert suspects(text) == []


def test_nothing_in_the_repository_looks_like_a_secret() -> None:
    found = {}
    for name in tracked():
        if LOCKS.search(name):
            continue
        if told := suspects((ROOT / name).read_text(errors="replace")):
            found[name] = told
    assert found == {}


@pytest.mark.parametrize(
    "name",
    ["inventory/secrets/chat/engine_key", "inventory/sandbox/secrets/a/tunnel.json",
     "inventory/hosts.yml", "inventory/group_vars/millrace/vault.yml", "artefacts/host.log"],
)  # fmt: skip
def test_git_takes_no_secrets(name: str) -> None:
    done = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False)
    assert done.returncode == 0, name
