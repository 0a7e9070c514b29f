"""Where the hops are: an address, a list of them, or what a run of site.yml wrote down."""

from __future__ import annotations

import json
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamcheck.model import CheckError, Target

KEY_VARIABLE = "MILLRACE_KEY"
TITLES = {
    "vllm": "vLLM",
    "litellm": "LiteLLM",
    "backend": "the backend",
    "nginx": "nginx on the server",
    "public": "the public address",
}


@dataclass(frozen=True)
class Chain:
    """The hops, innermost first. `model` may be empty: the first one that is offered."""

    hops: list[Target]
    model: str = ""
    # The engine's own metrics, for what only it can tell; empty where they are out of reach.
    metrics: Target | None = None
    # How to reach the server and the check that is installed there: ssh's arguments.
    ssh: list[str] = field(default_factory=list)


def title_of(name: str) -> str:
    """Return what a hop is called in sentences."""
    if name.startswith("vllm-"):
        return f"{TITLES['vllm']} ({name.removeprefix('vllm-')})"
    return TITLES.get(name, name)


def in_front_of_the_backend(name: str) -> bool:
    """Whether the backend's emitter may answer there: not at the engines and the gateway."""
    return name != "litellm" and name.partition("-")[0] != "vllm"


def api_root(url: str) -> str:
    """Return an OpenAI-compatible address up to its version: `https://host/prefix/v1`.

    Takes it with or without `/v1`, with a trailing slash or a path of the API behind it. Raises
    CheckError for what is no address.
    """
    try:
        parts = urllib.parse.urlsplit(url.strip())
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_fine = urllib.parse.urlsplit(""), False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise CheckError(f"{url!r} is no address: write https://host or https://host:port/v1")
    path = re.sub(r"/(chat/completions|completions|models)/*$", "", parts.path.rstrip("/"))
    if not re.search(r"/v\d+\w*$", path):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"


def read_key(path: Path) -> str:
    """Return the key in a file. Raises CheckError."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise CheckError(f"the key file {path} cannot be read: {reason}") from None
    if not key or not key.isprintable() or " " in key:
        raise CheckError(f"the key file {path} must hold one key and nothing else")
    return key


def from_addresses(addresses: Mapping[str, str], key: str, ca: str, model: str) -> Chain:
    """Return the chain of hops that are given by name and URL, innermost first."""
    hops = []
    for name, url in addresses.items():
        emitter = in_front_of_the_backend(name)
        hops.append(Target(name, title_of(name), api_root(url), key, ca, has_emitter=emitter))
    return Chain(hops, model)


def from_service(path: Path, key: str, *, address: str = "", outside_only: bool = False) -> Chain:
    """Return the chain of a server that site.yml set up: its public address, and ssh to the rest.

    `path`: service.json, as roles/verify writes it. `key` wins over the key file that it names,
    `address` over the address.
    """
    told = _read(path)
    try:
        root = api_root(address or told["url"])
        key_file = Path(told["key_file"])
        public = Target(
            "public", TITLES["public"], root, key or read_key(key_file), told["ca"],
            origin=api_root(told["url"]),
        )  # fmt: skip
        chain = Chain(
            [public],
            model=told["model"],
            ssh=[] if outside_only else [str(word) for word in told.get("ssh", [])],
        )
    except KeyError as error:
        raise CheckError(f"{path} has no {error}: run ./millrace site again") from None
    return chain


def from_file(path: Path) -> Chain:
    """Return the chain that lies on a server: roles/streamcheck writes the file.

    Keys are read from files, by name from $CREDENTIALS_DIRECTORY under systemd and else from the
    folder `keys` beside the file.
    """
    told = _read(path)
    folder = Path(os.environ.get("CREDENTIALS_DIRECTORY") or path.parent / "keys")
    hops = []
    try:
        for hop in told["hops"]:
            name = hop["name"]
            hops.append(
                Target(
                    name,
                    title_of(name),
                    api_root(_url(hop)),
                    read_key(folder / hop["key"]),
                    hop.get("ca", ""),
                    hop.get("connect", ""),
                    "server",
                    has_emitter=in_front_of_the_backend(name),
                )
            )
        metrics = Target("metrics", "vLLM's metrics", told["metrics"], seen_from="server")
        return Chain(hops, told["model"], metrics)
    except KeyError as error:
        raise CheckError(f"{path} has no {error}: run ./millrace site again") from None


@dataclass(frozen=True)
class Proof:
    """Where a proof is kept, and what it holds for: units of systemd, files and folders."""

    file: Path
    units: list[str]
    paths: list[str]


def proof(path: Path | None) -> Proof:
    """Return what the file of a server's chain says of its proof. Raises CheckError."""
    if path is None:
        raise CheckError("--unless-proved is for a server's own chain")
    try:
        told = _read(path)["proof"]
        return Proof(Path(told["file"]), list(told["units"]), list(told["paths"]))
    except KeyError as error:
        raise CheckError(f"{path} has no {error}: run ./millrace site again") from None


def _url(hop: Mapping[str, Any]) -> str:
    """Return the hop's URL: its own, or the one that the hop in front of it really uses."""
    if "upstream_of" not in hop:
        return str(hop["url"])
    return str(_read(Path(hop["upstream_of"]))["upstream_url"])


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckError(
            f"{path} cannot be read: {error.strerror}; has ./millrace site been run?"
        ) from None
    except ValueError:
        raise CheckError(f"{path} is not JSON: run ./millrace site again") from None
    if not isinstance(told, dict):
        raise CheckError(f"{path} is not as it should be: run ./millrace site again")
    return told
