"""Where packages come from: what this machine is told about mirrors, a server is told too.

Nothing about a registry is known here; it is all read from the controller's own apt, pip and
certificate store at run time.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .host import SandboxError, run

BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
ARCHIVES = Path("var/cache/apt/archives")
PIP_CACHE = Path("/var/cache/pip")
# What reaches packages, and nothing that changes what an install does
PIP_KEYS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "proxy",
    "timeout",
    "default-timeout",
    "retries",
    "disable-pip-version-check",
)
APT_KEYS = (
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::ForceIPv4",
    "Acquire::Retries",
)


# apt


def os_release(root: Path = Path("/")) -> dict[str, str]:
    """Read what a system calls itself."""
    lines = (root / "etc/os-release").read_text().splitlines()
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    return {key: "".join(shlex.split(value)) for key, value in pairs}


def debian_sources(suite: str, mirror: str) -> list[str]:
    """Return one-line sources for a suite: main, updates and security.

    A controller that is no Debian names no Debian mirror; mmdebstrap then uses its own.
    """
    if mirror:
        parts = urlsplit(mirror)
        security = mirror.rstrip("/").removesuffix("/debian") + "/debian-security"
        if not parts.scheme:
            raise SandboxError(f"sandbox_mirror: {mirror!r} is no address")
        return [
            f"deb {mirror} {suite} main",
            f"deb {mirror} {suite}-updates main",
            f"deb {security} {suite}-security main",
        ]
    here = os_release()
    if here.get("ID") != "debian":
        return []
    wanted = ["--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    shown = run(["apt-get", "indextargets", *wanted]).stdout
    sources: dict[str, str] = {}
    for line in shown.splitlines():
        uri, release, component = line.split()
        base, _, pocket = release.partition("-")
        ours = base in {here.get("VERSION_CODENAME"), "stable", "oldstable"}
        if ours and component == "main" and pocket in {"", "updates", "security"}:
            sources.setdefault(pocket, f"deb {uri} {'-'.join(filter(None, [suite, pocket]))} main")
    return [sources[pocket] for pocket in ("", "updates", "security") if pocket in sources]


def apt_options() -> list[str]:
    """Return the apt settings of this machine that reaching its mirror depends on."""
    shown = run(["apt-config", "dump", "--no-empty", *APT_KEYS]).stdout
    return sorted(set(shown.splitlines()))


def seed_archives(cache: Path, root: Path) -> None:
    """Give a new server the package files that earlier ones fetched (hard links, no locks)."""
    (root / ARCHIVES).mkdir(parents=True, exist_ok=True)
    for package in cache.glob("*.deb"):
        link_or_copy(package, root / ARCHIVES / package.name)


def harvest_archives(root: Path, cache: Path) -> int:
    """Keep the package files that a server fetched; only the newest version of each."""
    cache.mkdir(parents=True, exist_ok=True)
    kept = 0
    for package in (root / ARCHIVES).glob("*.deb"):
        if package.is_file() and not (cache / package.name).exists():
            link_or_copy(package, cache / package.name)
            kept += 1
    if kept:
        drop_superseded(cache)
    return kept


def link_or_copy(source: Path, target: Path) -> None:
    """Share a file that is never written again; appear under its name only when whole."""
    new = target.with_name(f".{target.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    try:
        new.hardlink_to(source)
    except OSError:
        shutil.copy2(source, new)
    new.replace(target)
    new.unlink(missing_ok=True)  # replace() of two links to one file does nothing


def drop_superseded(cache: Path) -> None:
    """Remove package files that no mirror offers any more: a newer version lies beside them."""
    versions: dict[tuple[str, str], list[tuple[str, Path]]] = {}
    for package in cache.glob("*_*_*.deb"):
        name, version, arch = package.stem.split("_", 2)
        versions.setdefault((name, arch), []).append((unquote(version), package))
    for found in versions.values():
        while len(found) > 1:
            compare = ["dpkg", "--compare-versions", found[0][0], "lt", found[1][0]]
            older = 0 if run(compare, check=False).returncode == 0 else 1
            found.pop(older)[1].unlink(missing_ok=True)


# Certificates


def certificates(bundle: Path) -> Iterator[str]:
    """Return each certificate of a bundle, without comments or spaces."""
    with contextlib.suppress(OSError):
        text = bundle.read_text(errors="replace")
        for block in re.findall(r"-----BEGIN CERTIFICATE-----(.*?)-----END", text, re.DOTALL):
            yield "\n".join(block.split())


def controller_certificates() -> list[str]:
    """Return every certificate that this machine's store, or its pip, trusts."""
    named = [os.environ.get("SSL_CERT_FILE", ""), os.environ.get("PIP_CERT", "")]
    named += [pip_settings().get("cert", "")]
    bundles = [BUNDLE, *(Path(name) for name in named if name)]
    return sorted({certificate for bundle in bundles for certificate in certificates(bundle)})


def trust(root: Path) -> None:
    """Add what this machine trusts and Debian does not ship (a proxy's certificate, say)."""
    shipped = set(certificates(root / BUNDLE.relative_to("/")))
    if not shipped:  # an image without ca-certificates
        return
    folder = root / "usr/local/share/ca-certificates"
    extra = [found for found in controller_certificates() if found not in shipped]
    for certificate in extra:
        name = f"controller-{hashlib.sha256(certificate.encode()).hexdigest()[:12]}.crt"
        text = f"-----BEGIN CERTIFICATE-----\n{certificate}\n-----END CERTIFICATE-----\n"
        (folder / name).write_text(text)
    if extra:
        run(["chroot", str(root), "update-ca-certificates"])


# pip


def pip_settings() -> dict[str, str]:
    """Return what pip on this machine would use: its files, then the environment over them."""
    settings: dict[str, str] = {}
    for python in (sys.executable, "/usr/bin/python3"):
        shown = run([python, "-m", "pip", "config", "list"], check=False)
        if shown.returncode == 0:
            for section in ("global.", "install.", ":env:."):
                for line in shown.stdout.splitlines():
                    key, _, value = line.partition("=")
                    if key.startswith(section):
                        settings[key.removeprefix(section)] = str(ast.literal_eval(value))
            break
    for key, value in os.environ.items():
        if key.startswith("PIP_"):
            settings[key.removeprefix("PIP_").lower().replace("_", "-")] = value
    return settings


def wheels(cache_dir: str) -> str:
    """Return the folder of wheels that every server's pip looks in, to be filled by hand.

    pip's own cache keeps nothing when a mirror forbids it.
    """
    return str(Path(cache_dir) / "wheels")


def pip_conf(cache_dir: str) -> str:
    """Return /etc/pip.conf for a server."""
    settings = pip_settings()
    settings["find-links"] = f"{settings.get('find-links', '')} {wheels(cache_dir)}"
    lines = [f"{key} = {' '.join(settings[key].split())}" for key in PIP_KEYS if key in settings]
    lines += [f"cert = {BUNDLE}", f"cache-dir = {PIP_CACHE}"]
    return "\n".join(["[global]", *lines, ""])


def pip_paths() -> list[str]:
    """Return the folders of this machine that its pip settings name."""
    settings = pip_settings()
    found = set()
    for key in ("index-url", "extra-index-url", "find-links"):
        for word in settings.get(key, "").split():
            parts = urlsplit(word)
            path = Path(unquote(parts.path)) if parts.scheme in {"", "file"} else None
            if path is None or not path.is_absolute() or not path.exists():
                continue
            # the pages of an index point to files beside it
            wide = path.parent if key != "find-links" and path.parent != Path("/") else path
            found.add(str(wide))
    return sorted(found)


def resolv_conf() -> str:
    """Return name servers that a server can reach: not those on this machine's loopback."""
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        with contextlib.suppress(OSError):
            lines = path.read_text().splitlines()
            kept = [
                line for line in lines if not re.match(r"\s*(#|;|$|nameserver\s+(127\.|::1))", line)
            ]
            if any(line.startswith("nameserver") for line in kept):
                return "\n".join([*kept, ""])
    return ""
