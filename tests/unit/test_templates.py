"""Every template, rendered by Ansible itself with a real plan, and judged by who reads it."""

from __future__ import annotations

import configparser
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from backend.key_files import KeysFile
from serving_plan import serving_plan
from streamcheck.chain import from_file
from unit_kit import ROOT, clean_environment

ENGINE_KEY = "engine-secret-" + "e" * 30
GATEWAY_KEY = "sk-gateway-secret-" + "g" * 30
OWNER_KEY = "owner-secret-" + "o" * 30
CHECK_KEY = "check-secret-" + "c" * 30
PHONE = {"models": ["recital"], "limits": {"requests_per_minute": 60}}
SESSION_SECRET = "session-secret-" + "s" * 30
SECRETS = (ENGINE_KEY, GATEWAY_KEY, OWNER_KEY, CHECK_KEY, SESSION_SECRET)

V4, V6 = "203.0.113.10", "2001:db8::10"
MACHINES: dict[str, dict[str, Any]] = {
    "bookworm": {"distribution": "Debian", "distribution_major_version": "12", "systemd": 252},
    "trixie": {"distribution": "Debian", "distribution_major_version": "13", "systemd": 257},
    "noble": {"distribution": "Ubuntu", "distribution_major_version": "24", "systemd": 255},
}
# Each has releases of its own.
PARTS = ("vllm", "litellm", "backend", "streamcheck")
# The first has no IPv6; the last has two engines, which only LiteLLM's configuration knows of.
ENGINES = {"bookworm": 1, "trixie": 1, "noble": 2}
ALL = pytest.mark.parametrize("machine", list(MACHINES))

TEMPLATES = [
    # A part is what others include.
    *(t for t in sorted((ROOT / "templates").rglob("*.j2")) if t.parent.name != "parts"),
    *sorted((ROOT / "roles").glob("*/templates/**/*.j2")),
]


def plan_for(machine: str) -> dict[str, Any]:
    """Return the machine's plan, as the role `plan` asks for it."""
    plan = serving_plan(
        {
            "device": "cpu" if machine == "bookworm" else "cuda",
            "model": "Qwen/Qwen3-0.6B",
            "model_revision": "",
            "models_dir": "/var/lib/millrace/models",
            "served_name": "",
            "max_model_len": 4096,
            "max_num_seqs": 64,
            "kv_cache_mib": 1024,
            "engine_port": 8001,
            "gateway_port": 4100,
            "metrics_port": 9464,
            "engine_arguments": {"chat-template": 'a "quoted": {value}'},
            "cores": 8,
        },
        {
            "gpus": [{"pci_address": "0000:01:00.0", "vendor": "10de", "device": "2204"}],
            "cpu": {"cores": 8},
            "memory_mib": 65536,
            "system": {"distribution": "Debian", "version": "12"},
        },
    )
    first = plan["engines"][0]
    for n in range(1, ENGINES[machine]):
        plan["engines"].append({**first, "name": f"engine{n}", "port": 8001 + n})
    return plan


def target(template: Path) -> str:
    """Return a name for what the template makes, unique over all roles."""
    return str(template.relative_to(ROOT).with_suffix("")).replace("templates/", "", 1)


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory, playbook: Callable[..., Any]) -> Path:
    """Render all templates for all machines: a folder for each machine."""
    home = tmp_path_factory.mktemp("rendered")
    stubs = home / "stubs"
    for name in PARTS:
        for program in ("python", "litellm"):
            stub = stubs / name / "current/venv/bin" / program
            stub.parent.mkdir(parents=True, exist_ok=True)
            stub.write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONPATH" "$MILLRACE_PROG" "$@"\n')
            stub.chmod(0o755)
    (stubs / "backend/a").symlink_to("current")
    hosts = {}
    for name, facts in MACHINES.items():
        hosts[name] = {
            "ansible_host": V4,
            "machine_plan": plan_for(name),
            "machine_facts": {
                **facts,
                "systemd": {"version": facts["systemd"], "features": ""},
                "all_ipv4_addresses": [V4],
                "all_ipv6_addresses": [] if name == "bookworm" else [V6],
            },
        }
    inventory = home / "inventory.yml"
    inventory.write_text(yaml.safe_dump({"millrace": {"hosts": hosts}}))
    roles = sorted(p.name for p in (ROOT / "roles").iterdir() if p.name != "sandbox")
    files = [ROOT / f"roles/{r}/{kind}/main.yml" for kind in ("defaults", "vars") for r in roles]
    wiring = [ROOT / f"inventory/group_vars/millrace/{n}.yml" for n in ("settings", "wiring")]
    play = {
        "hosts": "millrace",
        "gather_facts": False,
        "vars_files": [str(f) for f in [*files, *wiring] if f.exists()],
        "tasks": [
            {"fake_facts": {"facts": "{{ machine_facts }}"}},
            {"keep_text": {"content": "{{ texts | to_json }}",
                           "dest": f"{home}/{{{{ inventory_hostname }}}}.json"}},
        ],
    }  # fmt: skip
    given = home / "given.yml"
    given.write_text(
        json.dumps(
            {
                "millrace_plan": "{{ machine_plan }}",
                # Each engine's own files are written in a loop.
                "item": "{{ machine_plan.engines[0] }}",
                "vllm_device": "{{ machine_plan.engines[0].device }}",
                "__nvidia_driver_targets": {
                    "stdout_lines": ["http://deb/|bookworm|main|$(SIGNED_BY)|Debian|/etc/a.list:1"]
                },
                "nvidia_driver_decided": {"source": "nvidia", "repository": "debian12"},
                "__ssh_seen": {
                    "host_keys": {"ed25519": 256, "rsa": 3072},
                    "offers": {"kex": [], "cipher": [], "mac": [], "key": ["ssh-ed25519"]},
                },
                "__cloudflared_tunnel": {"tunnel_id": "6ff42ae2-765d-4adf-8112-31c55c1551ef"},
                "__cloudflared_program": "/bin/true",
                "nvidia_driver_module_options": {"nvidia": "NVreg_EnableGpuFirmware=1"},
                # One task for all: what ansible.builtin.template does, at a tenth of the time.
                "texts": {
                    target(t): f"{{{{ lookup('ansible.builtin.template', '{t}') }}}}"
                    for t in TEMPLATES
                },
                "millrace_secrets_dir": str(home / "secrets"),
                "vault_millrace_engine_key": ENGINE_KEY,
                "vault_millrace_gateway_key": GATEWAY_KEY,
                "vault_millrace_streamcheck_key": CHECK_KEY,
                "vault_millrace_session_secret": SESSION_SECRET,
                "millrace_client_keys": {
                    "owner": OWNER_KEY,
                    "phone": {"key": OWNER_KEY + "2", **PHONE, "expires": "2037-12-31"},
                },
                "tls_domains": ["chat.example.org"],
                "__tls_acme_hook": "/bin/true",  # systemd looks whether it is there
                **{f"{name}_root": str(stubs / name) for name in PARTS},
            }
        )
    )
    book = home / "render.yml"
    book.write_text(yaml.safe_dump([play], sort_keys=False))
    playbook("-i", str(inventory), "-e", f"@{given}", str(book))
    for machine in MACHINES:
        for name, text in json.loads((home / f"{machine}.json").read_text()).items():
            file = home / machine / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return home


def read(rendered: Path, machine: str, name: str) -> str:
    """Return what was rendered."""
    return (rendered / machine / name).read_text()


SETTINGS_JSON = "roles/backend/etc/millrace/backend/settings.json"
KEYS_JSON = "roles/backend/etc/millrace/backend/keys.json"
LITELLM_YAML = "roles/litellm/etc/millrace/litellm/config.yaml"
ENGINE_YAML = "roles/vllm/etc/millrace/vllm/engine.yaml"
ENGINE_ENV = "roles/vllm/etc/millrace/vllm/engine.env"
UNITS = [target(t) for t in TEMPLATES if t.parent.name == "systemd" and t.name != "sandbox.j2"]
CHECK = "systemd/millrace-streamcheck.service"
CHAIN_JSON = "roles/streamcheck/etc/millrace/streamcheck/chain.json"
COMMAND = "roles/streamcheck/usr/local/bin/millrace-check"
SERVICES = [name for name in UNITS if name.endswith(".service")]
GUARD = "systemd/millrace-guard@.service"
RANGES = "systemd/millrace-cloudflare-ranges.service"
SERVING = [name for name in SERVICES if name not in (CHECK, GUARD, RANGES)]
TUNNEL = "systemd/millrace-cloudflared.service"
TUNNEL_CONFIG = "roles/cloudflared/etc/millrace/cloudflared/config.yml"


@ALL
def test_nothing_is_left_unrendered(rendered: Path, machine: str) -> None:
    for template in TEMPLATES:
        text = read(rendered, machine, target(template))
        assert text.strip()
        for sign in ("{{", "{%", "%}", "{#", "Undefined"):
            assert sign not in text.replace("{value}", ""), f"{sign} in {template.name}"
        assert not re.search(r"^[^#\n]*\bNone\b", text, re.M), template.name


# Who may hold a secret -----------------------------------------------------------------------


@ALL
def test_only_files_that_root_alone_reads_hold_a_secret(rendered: Path, machine: str) -> None:
    holders = {
        target(template)
        for template in TEMPLATES
        if any(secret in read(rendered, machine, target(template)) for secret in SECRETS)
    }
    assert holders == {LITELLM_YAML, ENGINE_YAML}


@ALL
def test_clients_keys_are_there_as_hashes_only(rendered: Path, machine: str) -> None:
    file = json.loads(read(rendered, machine, KEYS_JSON))
    assert file["keys"] == [
        {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **more}
        for name, key, more in (
            ("owner", OWNER_KEY, {}),
            ("phone", OWNER_KEY + "2", {"expires": 2145830400, **PHONE}),
            ("streamcheck", CHECK_KEY, {}),
        )
    ]
    KeysFile.model_validate(file)


# The backend, LiteLLM and the engine ---------------------------------------------------------


@ALL
def test_the_backend_accepts_its_settings(rendered: Path, machine: str) -> None:
    file = rendered / machine / SETTINGS_JSON
    settings, budget = json.loads(file.read_text()), plan_for(machine)["budget"]
    assert settings["heartbeat_seconds"] == budget["heartbeat_seconds"]
    assert settings["upstream_keepalive_seconds"] == budget["backend_pool_seconds"]
    assert settings["keepalive_seconds"] == budget["backend_keepalive_seconds"]
    assert settings["upstream_url"] == "http://127.0.0.1:4100/vllm"
    assert settings["models"] == [{"id": "Qwen3-0.6B"}]
    checked = subprocess.run(
        [sys.executable, "-m", "backend", "--check", "--config", str(file)],
        env=clean_environment(PYTHONPATH=str(ROOT / "app")),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


@ALL
def test_litellm_knows_each_engine_and_retries_only_when_there_is_another(
    rendered: Path, machine: str
) -> None:
    config = yaml.safe_load(read(rendered, machine, LITELLM_YAML))
    engines = plan_for(machine)["engines"]
    assert [m["model_info"]["id"] for m in config["model_list"]] == [e["name"] for e in engines]
    for entry, engine in zip(config["model_list"], engines, strict=True):
        parameters = entry["litellm_params"]
        assert entry["model_name"] == engine["model"]["served_name"]
        assert parameters["model"] == f"hosted_vllm/{engine['model']['served_name']}"
        assert parameters["api_base"] == f"http://127.0.0.1:{engine['port']}/v1"
        assert parameters["api_key"] == ENGINE_KEY
    assert config["router_settings"]["num_retries"] == (1 if ENGINES[machine] > 1 else 0)
    assert config["general_settings"]["master_key"] == GATEWAY_KEY
    assert config["general_settings"]["background_health_checks"] is False


@ALL
def test_the_engine_gets_the_plans_flags_and_its_key(rendered: Path, machine: str) -> None:
    flags = yaml.safe_load(read(rendered, machine, ENGINE_YAML))
    planned = plan_for(machine)["engines"][0]["arguments"]
    assert flags == {**planned, "api-key": ENGINE_KEY}


# nginx ---------------------------------------------------------------------------------------


def directives(text: str) -> list[str]:
    """Return nginx's directives, one a line, without comments."""
    bare = re.sub(r"^\s*#.*$", "", re.sub(r"'[^'\n]*'", "''", text), flags=re.M)
    return [re.sub(r"\s+", " ", d.strip()) for d in re.split(r"[;{}]", bare) if d.strip()]


def locations(text: str) -> dict[str, list[str]]:
    """Return the directives of each location."""
    found = re.findall(r"^( *)location ([^{]+?) \{\n(.*?)^\1\}", text, re.S | re.M)
    return {name: directives(body) for _, name, body in found}


# A location that said one of these itself would inherit none of its kind.
INHERITED = (
    "proxy_buffering", "proxy_cache", "gzip", "proxy_http_version", "proxy_set_header",
    "proxy_ignore_headers", "proxy_pass_header", "proxy_next_upstream", "proxy_read_timeout",
    "proxy_connect_timeout", "proxy_send_timeout",
)  # fmt: skip


def to_backend(text: str) -> dict[str, list[str]]:
    """Return the locations that pass requests on, with what they inherit."""
    every, shared = locations(text), directives(text.partition("    server {")[0])
    shared = [told for told in shared if told.split()[0] in INHERITED]
    return {n: told + shared for n, told in every.items() if "proxy_pass http://backend" in told}


@ALL
def test_no_hop_of_nginx_holds_bytes_back(rendered: Path, machine: str) -> None:
    places = to_backend(read(rendered, machine, "nginx/nginx.conf"))
    assert {"/v1/", "= /healthz", "= /readyz"} <= set(places)
    for name, told in places.items():
        for wanted in (
            "proxy_buffering off",
            "proxy_cache off",
            "gzip off",
            "proxy_http_version 1.1",
            # None is kept for the next request, which would race a backend that ends.
            "proxy_set_header Connection close",
            "proxy_ignore_headers X-Accel-Buffering",
            "proxy_pass_header X-Accel-Buffering",
            "proxy_next_upstream off",
        ):
            assert wanted in told, f"{wanted} is missing in {name}"
    for name, told in locations(read(rendered, machine, "nginx/nginx.conf")).items():
        assert not [d for d in told if d.split()[0] in INHERITED], f"{name} inherits less"


@ALL
def test_what_is_not_the_api_is_not_passed_on(rendered: Path, machine: str) -> None:
    every = locations(read(rendered, machine, "nginx/nginx.conf"))
    assert every["/"] == ["return 404"]
    assert not [told for told in every.values() if "proxy_pass" in " ".join(told)
                and "proxy_pass http://backend" not in told]  # fmt: skip


@ALL
def test_metrics_stay_inside(rendered: Path, machine: str) -> None:
    places = set(to_backend(read(rendered, machine, "nginx/nginx.conf")))
    assert not [place for place in places if "/metrics".startswith(place.removeprefix("= "))]


@ALL
def test_nginxs_own_refusals_are_errors_as_clients_read_them(rendered: Path, machine: str) -> None:
    text = read(rendered, machine, "nginx/nginx.conf")
    bodies = re.findall(r"return \d+ '(\{.*\})';", text)
    for body in bodies:
        error = json.loads(body)["error"]
        assert error["message"].endswith(".")
        assert error["code"]
    assert len(bodies) == len(re.findall(r"error_page", text))


@ALL
def test_the_page_may_use_this_server_and_no_other(rendered: Path, machine: str) -> None:
    text = read(rendered, machine, "nginx/nginx.conf")
    place = re.search(r"location = / \{(.*?)\n        \}", text, re.S)
    assert place is not None
    headers = dict(re.findall(r'add_header ([\w-]+) "([^"]*)" always;', place[1]))
    policy = dict(p.strip().split(" ", 1) for p in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    for name, value in policy.items():
        allowed = {"'self'", "'none'", "'script'", "dompurify"} | (
            {"data:"} if name == "img-src" else set()
        )
        assert set(value.split()) <= allowed, name
    assert headers["Cache-Control"] == "no-cache"
    assert headers["X-Content-Type-Options"] == "nosniff"
    (assets,) = [told for name, told in locations(text).items() if "/assets/" in name]
    assert [told for told in assets if "immutable" in told]
    assert "gzip_static on" in assets


def test_without_a_page_nothing_but_the_api_is_served(
    tmp_path: Path, playbook: Callable[..., Any]
) -> None:
    """The template as an owner with `millrace_page: false` gets it."""
    given = {
        "millrace_plan": plan_for("bookworm"),
        "machine": {
            **MACHINES["bookworm"],
            "all_ipv4_addresses": [V4],
            "all_ipv6_addresses": [],
        },
        "millrace_page": False,
        "out": str(tmp_path / "nginx.conf"),
    }
    conf = ROOT / "templates/nginx/nginx.conf.j2"
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [
            str(ROOT / "roles/nginx/defaults/main.yml"),
            str(ROOT / "roles/nginx/vars/main.yml"),
            str(ROOT / "inventory/group_vars/millrace/settings.yml"),
            str(ROOT / "inventory/group_vars/millrace/wiring.yml"),
        ],
        "tasks": [
            {"fake_facts": {"facts": "{{ machine }}"}},
            {
                "keep_text": {
                    "content": f"{{{{ lookup('ansible.builtin.template', '{conf}') }}}}",
                    "dest": "{{ out }}",
                }
            },
        ],
    }
    book, settings = tmp_path / "page.yml", tmp_path / "given.yml"
    book.write_text(yaml.safe_dump([play], sort_keys=False))
    settings.write_text(json.dumps(given))
    playbook("-i", "localhost,", "-c", "local", "-e", f"@{settings}", str(book))
    every = locations((tmp_path / "nginx.conf").read_text())
    assert not {"= /", r"~ ^/assets/[\w.-]+$"} & set(every)
    assert {"/v1/", "= /healthz", "= /readyz", "/"} <= set(every)


def seconds(told: list[str], name: str) -> int:
    """Return the one value of a directive in seconds."""
    (value,) = [d.split()[1] for d in told if d.split()[0] == name]
    return int(value.removesuffix("s"))


@ALL
def test_nginx_waits_longer_than_what_is_behind_it(rendered: Path, machine: str) -> None:
    text = read(rendered, machine, "nginx/nginx.conf")
    budget = plan_for(machine)["budget"]
    for told in to_backend(text).values():
        read_seconds = seconds(told, "proxy_read_timeout")
        assert read_seconds > budget["first_byte_seconds"]
        assert read_seconds > budget["idle_seconds"]
        assert seconds(told, "proxy_connect_timeout") < 60
    whole = directives(text)
    assert seconds(whole, "keepalive_timeout") > 900
    assert seconds(whole, "worker_shutdown_timeout") >= budget["longest_stream_seconds"]


def test_http2_is_asked_for_as_each_nginx_knows_it(rendered: Path) -> None:
    old = directives(read(rendered, "bookworm", "nginx/nginx.conf"))
    assert "listen 443 ssl http2 default_server" in old
    assert "http2 on" not in old
    new = directives(read(rendered, "trixie", "nginx/nginx.conf"))
    assert "listen 443 ssl default_server" in new
    assert "http2 on" in new
    ubuntu = directives(read(rendered, "noble", "nginx/nginx.conf"))
    assert "listen 443 ssl http2 default_server" in ubuntu
    assert "http2 on" not in ubuntu


def test_ipv6_is_listened_on_only_where_there_is_some(rendered: Path) -> None:
    assert "listen [::]" not in read(rendered, "bookworm", "nginx/nginx.conf")
    trixie = directives(read(rendered, "trixie", "nginx/nginx.conf"))
    assert "listen [::]:443 ssl default_server" in trixie
    assert "listen [::]:80 default_server" in trixie


# systemd -------------------------------------------------------------------------------------


def settings(text: str, section: str) -> dict[str, list[str]]:
    """Return a unit's settings of one section, every value in order."""
    found: dict[str, list[str]] = {}
    here = ""
    for line in text.splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            here = match[1]
        elif here == section and "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


@ALL
@pytest.mark.parametrize("unit", SERVING)
def test_growing_pauses_only_where_systemd_knows_them(
    rendered: Path, machine: str, unit: str
) -> None:
    service = settings(read(rendered, machine, unit), "Service")
    knows = MACHINES[machine]["systemd"] >= 254
    assert ("RestartSteps" in service) == knows
    assert ("RestartMaxDelaySec" in service) == knows
    assert service["Restart"] == ["always"]


@ALL
@pytest.mark.parametrize("unit", SERVING)
def test_services_come_back_for_ever_and_stop_in_their_own_time(
    rendered: Path, machine: str, unit: str
) -> None:
    text = read(rendered, machine, unit)
    assert settings(text, "Unit")["StartLimitIntervalSec"] == ["0"]
    service = settings(text, "Service")
    drain = plan_for(machine)["budget"]["drain_seconds"]
    assert int(service["TimeoutStopSec"][0]) > drain
    assert service["KillMode"] == ["mixed"]


@ALL
@pytest.mark.parametrize("unit", SERVICES)
def test_services_are_in_the_sandbox(rendered: Path, machine: str, unit: str) -> None:
    service = settings(read(rendered, machine, unit), "Service")
    for name, value in settings("[Service]\n" + read(rendered, machine, "systemd/sandbox"),
                                "Service").items():  # fmt: skip
        assert service[name][0] == value[0], f"{unit} does not keep {name}"
    if unit == RANGES:
        # The only one that asks the internet, for nginx and nft to judge what it hears as root.
        assert not {"IPAddressDeny", "User"} & set(service)
        assert not set(" ".join(service["CapabilityBoundingSet"]).split()) - {
            "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_CHOWN", "CAP_DAC_OVERRIDE",
        }  # fmt: skip
        return
    if unit == TUNNEL:
        # It goes out to Cloudflare, as a user that is there for as long as it runs.
        assert service["DynamicUser"] == ["yes"]
        return
    assert service["IPAddressDeny"] == ["any"]
    if unit == GUARD:
        # It asks the cards as root, and nobody over a network.
        assert not {"IPAddressAllow", "User"} & set(service)
        return
    assert service["IPAddressAllow"] == ["localhost"]
    assert service["User"][0].startswith("millrace-")


@ALL
@pytest.mark.parametrize("unit", [name for name in SERVICES if name not in (GUARD, RANGES)])
def test_secrets_come_as_credentials(rendered: Path, machine: str, unit: str) -> None:
    service = settings(read(rendered, machine, unit), "Service")
    assert service["LoadCredential"]
    for line in [*service["ExecStart"], *service.get("Environment", [])]:
        assert not re.search(r"(key|token|secret|password)=", line, re.I), line


@ALL
def test_pools_let_go_as_planned(rendered: Path, machine: str) -> None:
    budget = plan_for(machine)["budget"]
    unit = read(rendered, machine, "systemd/millrace-litellm.service")
    assert f"AIOHTTP_KEEPALIVE_TIMEOUT={budget['gateway_pool_seconds']}\n" in unit
    assert f"--keepalive_timeout {budget['gateway_keepalive_seconds']}\n" in unit
    assert f"GRACEFUL_SHUTDOWN_TIMEOUT={budget['drain_seconds']}\n" in unit


DROP_INS = {
    "systemd/nginx.conf": "Type=forking\nPIDFile=/run/nginx.pid\nExecStart=/bin/true\n"
    "ExecStop=/bin/false\n",
    "systemd/certbot.conf": "Type=oneshot\nExecStart=/bin/true\n",
}
"""Drop-ins for units of Debian's, and the skeletons of those."""


def instance_of(name: str) -> str:
    """Return a unit's file name; of a template, that of an instance which there is."""
    return Path(name).name.replace("backend@.", "backend@a.").replace("@.", "@main.")


@ALL
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_itself_has_nothing_to_say(
    rendered: Path, machine: str, unit: str, tmp_path: Path
) -> None:
    """`verify` ends with 0 even where it does not know a key, so that it must print nothing."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed here")
    said = subprocess.run([analyze, "--version"], capture_output=True, text=True, check=True)
    version = int(said.stdout.split()[1])
    if MACHINES[machine]["systemd"] >= 254 > version:
        pytest.skip(f"systemd {version} here does not know what {machine} does")
    for name in UNITS:
        text = read(rendered, machine, name)
        place = tmp_path / instance_of(name)
        if skeleton := DROP_INS.get(name):
            service = tmp_path / Path(name).with_suffix(".service").name
            service.write_text(f"[Unit]\nDescription=x\n[Service]\n{skeleton}")
            place = tmp_path / f"{service.name}.d/millrace.conf"
            place.parent.mkdir()
        place.write_text(text)
    name = str(Path(unit).with_suffix(".service")) if unit in DROP_INS else unit
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no",
         str(tmp_path / instance_of(name))],
        capture_output=True, text=True, timeout=60, check=False,
        env={**clean_environment(), "SYSTEMD_LOG_LEVEL": "info"},
    )  # fmt: skip
    told = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if str(tmp_path) in line or Path(unit).name.split(".")[0].split("@")[0] in line
    ]
    assert told == []
    assert done.returncode == 0, done.stdout + done.stderr


# What `systemd-analyze security` may find at most (0 is best); others 2.0.
EXPOSURE = {
    "systemd/nginx.conf": 3.0,
    # Root once a day: nginx and nft judge the list before it is used.
    "systemd/millrace-cloudflare-ranges.service": 3.0,
}


@ALL
@pytest.mark.parametrize("unit", [*SERVICES, "systemd/nginx.conf"])
def test_every_service_is_exposed_to_little(
    rendered: Path, machine: str, unit: str, tmp_path: Path
) -> None:
    """For cards as well, which no server of the host tests has."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed here")
    file = tmp_path / (Path(unit).name.replace("nginx.conf", "nginx.service"))
    # It counts what a unit says, and not what it runs.
    file.write_text(re.sub(r"^ExecStart.*\n", "", read(rendered, machine, unit), flags=re.M)
                    .replace("[Service]\n", "[Service]\nExecStart=/bin/true\n"))  # fmt: skip
    most = EXPOSURE.get(unit, 2.0)
    done = subprocess.run(
        [analyze, "security", "--offline=true", f"--threshold={round(most * 10)}", "--no-pager",
         str(file)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "exposure level" in done.stdout, done.stderr
    assert done.returncode == 0, done.stdout


# The tunnel ----------------------------------------------------------------------------------


@ALL
def test_the_tunnel_leads_our_names_to_nginx_alone_and_checks_its_certificate(
    rendered: Path, machine: str
) -> None:
    told = yaml.safe_load(read(rendered, machine, TUNNEL_CONFIG))
    assert told["ingress"] == [
        {"hostname": "chat.example.org", "service": "https://127.0.0.1:8443"},
        {"service": "http_status:404"},
    ]
    origin = told["originRequest"]
    assert (origin["noTLSVerify"], origin["originServerName"]) == (False, "chat.example.org")
    assert origin["caPool"] == "/etc/millrace/cloudflared/origin-ca.pem"
    # Streams are not gathered into one answer.
    assert (origin["http2Origin"], origin["disableChunkedEncoding"]) == (True, False)
    budget = plan_for(machine)["budget"]
    assert int(origin["keepAliveTimeout"].rstrip("s")) < budget["client_keepalive_seconds"]
    # cloudflared itself refuses more than three minutes.
    assert int(told["grace-period"].rstrip("s")) <= min(180, budget["drain_seconds"])
    assert told["no-autoupdate"] is True
    assert told["management-diagnostics"] is False
    assert told["metrics"].startswith("127.0.0.1:")


@ALL
def test_the_tunnels_secret_reaches_it_through_systemd(rendered: Path, machine: str) -> None:
    told = yaml.safe_load(read(rendered, machine, TUNNEL_CONFIG))
    service = settings(read(rendered, machine, TUNNEL), "Service")
    (name,) = [line.partition(":")[0] for line in service["LoadCredential"]]
    assert told["credentials-file"] == f"/run/credentials/millrace-cloudflared.service/{name}"
    assert told["tunnel"] == "6ff42ae2-765d-4adf-8112-31c55c1551ef"


# The stream check ----------------------------------------------------------------------------


@pytest.fixture
def check_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand over the keys as systemd does."""
    for name, key in (("vllm", ENGINE_KEY), ("litellm", GATEWAY_KEY), ("backend", CHECK_KEY)):
        (tmp_path / name).write_text(f"{key}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))


@ALL
@pytest.mark.usefixtures("check_keys")
def test_the_check_finds_every_hop(rendered: Path, machine: str, tmp_path: Path) -> None:
    told = json.loads(read(rendered, machine, CHAIN_JSON))
    engines = plan_for(machine)["engines"]
    names = ["vllm", *(f"vllm-{engine['name']}" for engine in engines[1:])]
    assert [hop["name"] for hop in told["hops"]] == [*names, "litellm", "backend", "nginx"]
    gateway = told["hops"][len(engines)]
    assert gateway["upstream_of"] == "/etc/millrace/backend/settings.json"
    gateway["upstream_of"] = str(rendered / machine / SETTINGS_JSON)
    (tmp_path / "chain.json").write_text(json.dumps(told))
    chain = from_file(tmp_path / "chain.json")
    assert chain.model == engines[0]["model"]["served_name"]
    assert chain.metrics is not None
    assert chain.metrics.url == f"http://127.0.0.1:{engines[0]['port']}/metrics"
    assert [(hop.url, hop.connect, hop.key) for hop in chain.hops] == [
        *((f"http://127.0.0.1:{engine['port']}/v1", "", ENGINE_KEY) for engine in engines),
        ("http://127.0.0.1:4100/vllm/v1", "", GATEWAY_KEY),
        ("http://localhost/v1", "unix:/run/millrace-backend.sock", CHECK_KEY),
        ("https://chat.example.org/v1", "127.0.0.1", CHECK_KEY),
    ]
    assert chain.hops[-1].ca == "/etc/millrace/tls/server.crt"


@ALL
def test_the_checks_command_passes_its_arguments_on(
    rendered: Path, machine: str, tmp_path: Path
) -> None:
    command = tmp_path / "millrace-check"
    command.write_text(read(rendered, machine, COMMAND))
    command.chmod(0o755)
    done = subprocess.run(
        [command, "--html", "a name.html"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    current = rendered / "stubs/streamcheck/current"
    assert done.stdout.splitlines() == [
        f"{current}/app", "millrace-check", "-m", "streamcheck", "--chain",
        "/etc/millrace/streamcheck/chain.json", "--html", "a name.html",
    ]  # fmt: skip


@ALL
def test_the_check_runs_once_and_lets_a_failure_show(rendered: Path, machine: str) -> None:
    text = read(rendered, machine, CHECK)
    service = settings(text, "Service")
    assert service["Type"] == ["oneshot"]
    assert "SuccessExitStatus" not in service
    assert "Restart" not in service
    (start,) = service["ExecStart"]
    assert start.endswith("--keep /var/lib/millrace-streamcheck --quiet")
    assert service["StateDirectory"] == ["millrace-streamcheck"]
    handed = [line.split(":")[0] for line in service["LoadCredential"]]
    hops = json.loads(read(rendered, machine, CHAIN_JSON))["hops"]
    assert set(handed) == {hop["key"] for hop in hops}
    (order,) = settings(text, "Unit")["After"]
    for engine in plan_for(machine)["engines"]:
        assert f"millrace-vllm@{engine['name']}.service" in order.split()


@ALL
def test_the_checks_clock_is_one_that_systemd_reads(rendered: Path, machine: str) -> None:
    text = read(rendered, machine, "systemd/millrace-streamcheck.timer")
    timer = settings(text, "Timer")
    assert timer["OnCalendar"] == ["hourly"]
    assert timer["Persistent"] == ["true"]
    assert settings(text, "Install")["WantedBy"] == ["timers.target"]


# The rest ------------------------------------------------------------------------------------


@ALL
def test_openssl_makes_a_certificate_with_every_name(
    rendered: Path, machine: str, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed here")
    config = rendered / machine / "roles/tls/self-signed.cnf"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "825", "-config", config, "-keyout", tmp_path / "k", "-out", "-"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-text"], input=made.stdout,
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in ("DNS:chat.example.org", f"IP Address:{V4}", "DNS:localhost", "CN = chat."):
        assert name in shown


@ALL
def test_the_journal_is_bounded(rendered: Path, machine: str) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(
        read(rendered, machine, "roles/base/etc/systemd/journald.conf.d/millrace.conf")
    )
    assert parser["Journal"]["SystemMaxUse"] == "1024M"
    assert parser["Journal"]["Storage"] == "persistent"


@ALL
def test_updates_never_reboot_the_server(rendered: Path, machine: str) -> None:
    text = read(rendered, machine, "roles/base/etc/apt/apt.conf.d/52millrace")
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in text
    assert 'APT::Periodic::Unattended-Upgrade "1";' in text
    bare = re.sub(r"^//.*\n", "", text, flags=re.M)
    assert all(line.endswith(";") for line in bare.splitlines())


@ALL
def test_an_engine_gets_its_port_and_cards_and_no_key(rendered: Path, machine: str) -> None:
    text = read(rendered, machine, ENGINE_ENV)
    values = dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))
    planned = plan_for(machine)["engines"][0]
    assert values == {"MILLRACE_ENGINE_PORT": "8001", **planned["environment"]}


# The guard, and what the engine may open -------------------------------------------------------


@ALL
def test_the_engine_waits_for_the_guard(rendered: Path, machine: str) -> None:
    unit = settings(read(rendered, machine, "systemd/millrace-vllm@.service"), "Unit")
    assert "millrace-guard@%i.service" in " ".join(unit["Requires"])
    assert "millrace-guard@%i.service" in " ".join(unit["After"])


@ALL
def test_an_engine_on_cards_opens_them_and_no_other_device(rendered: Path, machine: str) -> None:
    service = settings(read(rendered, machine, "systemd/millrace-vllm@.service"), "Service")
    on_cards = plan_for(machine)["engines"][0]["device"] == "cuda"
    assert service["PrivateDevices"][-1] == ("no" if on_cards else "yes")
    assert ("DeviceAllow" in service) == on_cards
    if on_cards:
        assert service["DevicePolicy"] == ["closed"]
        assert service["DeviceAllow"] == ["char-nvidia* rw"]


@ALL
@pytest.mark.parametrize("name", ["millrace-backend@", "millrace-litellm"])
def test_what_relays_takes_its_turn_where_the_engine_is_on_cards(
    rendered: Path, machine: str, name: str
) -> None:
    """Beside an engine that computes on the processor it would wait for it."""
    service = settings(read(rendered, machine, f"systemd/{name}.service"), "Service")
    on_cards = plan_for(machine)["engines"][0]["device"] == "cuda"
    assert service.get("CPUSchedulingPolicy") == (["batch"] if on_cards else None)


@ALL
def test_the_guard_makes_devices_where_cards_serve(rendered: Path, machine: str) -> None:
    service = settings(read(rendered, machine, GUARD), "Service")
    on_cards = plan_for(machine)["engines"][0]["device"] == "cuda"
    assert ("ExecStartPre" in service) == on_cards
    assert service["Type"] == ["oneshot"]
    # It ends, so that each start of the engine looks anew.
    assert "RemainAfterExit" not in service


SOURCES = "roles/nvidia_driver/etc/apt/sources.list.d/millrace-driver.sources"


def test_a_distributions_other_components_come_from_its_own_servers(rendered: Path) -> None:
    text = read(rendered, "bookworm", SOURCES)
    assert "URIs: http://deb/\nSuites: bookworm\nComponents: contrib\n" in text
    assert "Signed-By" not in text


def test_upgrades_leave_driver_and_kernel_alone(rendered: Path) -> None:
    text = read(rendered, "bookworm", "roles/nvidia_driver/etc/apt/apt.conf.d/53millrace-driver")
    left = [re.compile(word) for word in re.findall(r'"(.*)";', text)]
    for name in ("nvidia-smi", "libnvidia-ml1", "libcuda1", "linux-image-amd64", "cuda-drivers"):
        assert any(word.search(name) for word in left), name
    for name in ("openssl", "linux-libc-dev", "libc6", "nginx"):
        assert not any(word.search(name) for word in left), name
