"""Judge what preflight observed: a line per problem, each saying how to mend it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "app"))

from keys.inventory import client_problems

SYSTEMS = {"Debian": ("12", "13"), "Ubuntu": ("24.04",)}
PYTHON_MINIMUM = (3, 11)  # vLLM 0.33 and ansible-core's own floor for modules is far below

OUR_UNITS = re.compile(r"(millrace-.*|nginx)\.service")

# MiB on disk of what is installed, measured on Debian 12: a release while it is built, and its
# pip cache beside it. The CUDA figure adds up the wheels that its lock file names.
ENGINE_MIB = {"cpu": 6 * 1024, "cuda": 24 * 1024}
SERVICES_MIB = 2 * 1024
MARGIN_MIB = 1024

# MiB of memory beside the weights: LiteLLM, the backend, nginx and the system.
SERVICES_MEMORY_MIB = 2 * 1024
ENGINE_MEMORY_MIB = 2 * 1024

KEY = re.compile(r"[\x21-\x7e]{32,}")
GATEWAY_KEY = re.compile(r"sk-[\x21-\x7e]{29,}")


def system_problems(facts: Mapping[str, Any], observed: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the system itself."""
    problems = []
    name, version = facts.get("distribution", "?"), str(facts.get("distribution_version", "?"))
    if not any(version == v or version.startswith(f"{v}.") for v in SYSTEMS.get(name, ())):
        known = ", ".join(f"{n} {v}" for n, vs in SYSTEMS.items() for v in vs)
        problems.append(f"{name} {version} is not supported: reinstall with one of {known}.")
    if facts.get("architecture") != "x86_64":
        problems.append(
            f"{facts.get('architecture')} is not supported: the locked wheels are for x86_64."
        )
    if observed["user_id"] != 0:
        problems.append(
            "not root: set ansible_user: root, or ansible_become: true with a user who has sudo."
        )
    version = observed["python_version"]
    if not version:
        problems.append("the interpreter for the services is missing: install python3.")
    elif tuple(int(n) for n in version.split(".")) < PYTHON_MINIMUM:
        floor = ".".join(str(n) for n in PYTHON_MINIMUM)
        problems.append(f"Python {version} is too old: vLLM needs {floor} or newer.")
    return problems


def port_problems(observed: Mapping[str, Any]) -> list[str]:
    """Return which ports are taken by something that is not ours."""
    problems = []
    for port, owner in sorted(observed["listeners"].items(), key=lambda item: int(item[0])):
        ours = OUR_UNITS.fullmatch(owner["unit"]) or owner["process"] == "systemd"
        if not ours:
            unit = owner["unit"] or "no unit"
            problems.append(
                f"port {port} is taken by {owner['process']} ({unit}): stop and disable it, or "
                "choose another port in the settings."
            )
    return problems


def model_problems(model: Mapping[str, Any], seen: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the chosen model's source."""
    problem = seen.get("problem", "")
    name = model["id"]
    told = {
        "": None,
        "missing": f"vllm_model: there is no folder {name} on the server. Copy the model there, or "
        "name one of the hub as owner/name.",
        "no_config": f"vllm_model: {name} holds no config.json, so it is no model that vLLM loads.",
        "http_401": f"vllm_model: the hub does not show {name} without a token. Check the name; "
        "if the model is gated or private, set vault_millrace_hub_token.",
        "http_403": f"vllm_model: the hub's token may not read {name}: accept the model's terms on "
        "its page with the token's account.",
        "http_404": f"vllm_model: the hub knows no {name} at revision "
        f"{model['revision'] or 'main'}. Check the spelling and vllm_model_revision.",
        "unreachable": f"vllm_model: the hub cannot be reached from the server "
        f"({seen.get('detail', '')}). Mend the way out, or copy the model there and give its path.",
    }
    line = told.get(problem, f"vllm_model: the hub answered {problem} for {name}; try again later.")
    return [line] if line else []


def room_problems(
    device: str, kv_cache_mib: int, observed: Mapping[str, Any], folders: Mapping[str, str]
) -> list[str]:
    """Return what does not fit on disk or in memory. `folders`: `releases` and `models`."""
    model_mib = int(observed["model"].get("bytes") or 0) >> 20
    fetched = 0 if observed["model"].get("present") else model_mib
    releases, models = (observed["space"][folders[k]] for k in ("releases", "models"))
    installed = observed["space"][f"{folders['releases']}/vllm/current"]["exists"]
    install = 0 if installed else ENGINE_MIB[device] + SERVICES_MIB
    needs = [("releases", install), ("models", fetched)]
    if releases["device"] == models["device"]:
        needs = [("releases", install + fetched)]
    problems = []
    for key, need in needs:
        free = observed["space"][folders[key]]["free_mib"]
        if need and free < need + MARGIN_MIB:
            problems.append(
                f"{folders[key]} has {free} MiB free and {need + MARGIN_MIB} MiB are needed for "
                f"the {'engine and model' if key == 'releases' else 'model'}: free or add space, "
                "or choose a smaller model."
            )
    need = SERVICES_MEMORY_MIB + ENGINE_MEMORY_MIB
    if device == "cpu":
        need += model_mib + kv_cache_mib
    if observed["memory_mib"] < need:
        problems.append(
            f"{observed['memory_mib']} MiB of memory, and {need} MiB are needed for this model"
            f"{' and its KV cache (plan_kv_cache_mib)' if device == 'cpu' else ''}: choose a "
            "smaller model or a larger server."
        )
    return problems


def secret_problems(secrets: Mapping[str, Any]) -> list[str]:
    """Return which secrets are missing or malformed; values never appear.

    `secrets`: `engine`, `gateway` and `streamcheck` keys, the `session` secret, and `clients` as in
    millrace_client_keys.
    """
    problems = []
    if not KEY.fullmatch(str(secrets["engine"])):
        problems.append("vault_millrace_engine_key: 32 or more printable characters, no spaces.")
    if not GATEWAY_KEY.fullmatch(str(secrets["gateway"])):
        problems.append("vault_millrace_gateway_key: sk- and 29 or more printable characters.")
    if not KEY.fullmatch(str(secrets["streamcheck"])):
        problems.append(
            "vault_millrace_streamcheck_key: 32 or more printable characters, no spaces."
        )
    if not KEY.fullmatch(str(secrets["session"])):
        problems.append(
            "vault_millrace_session_secret: 32 or more printable characters, no spaces."
        )
    return [*problems, *client_problems(secrets["clients"])]


def preflight_problems(
    observed: Mapping[str, Any], facts: Mapping[str, Any], decided: Mapping[str, Any]
) -> list[str]:
    """Return every problem that preflight found, a line each, empty when all is well.

    `observed`: what `preflight_facts` returned. `facts`: Ansible's. `decided`: `device`, `model`,
    `driver_problem`, `kv_cache_mib`, `folders` and `secrets`.
    """
    unreachable = [
        f"no route to a package source ({line}): mend DNS or the way out, or set "
        "millrace_wheelhouse for an install without a network."
        for line in observed["unreachable"]
    ]
    return [
        *system_problems(facts, observed),
        *port_problems(observed),
        *([f"{decided['driver_problem']}."] if decided["driver_problem"] else []),
        *model_problems(decided["model"], observed["model"]),
        *room_problems(
            decided["device"], int(decided["kv_cache_mib"]), observed, decided["folders"]
        ),
        *unreachable,
        *secret_problems(decided["secrets"]),
    ]


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"preflight_problems": preflight_problems}
