"""Our own chain's files, rendered by Ansible from the roles' templates, placed for this machine.

Nothing of a configuration is written here: templates, defaults and wiring are those that a server
gets, and commands and environments are read from the units. What differs is where things lie.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.serving import serving_plan

from bench.hops import UnavailableError
from bench.parts import ROOT, nginx_version
from bench.units import Unit, read_unit

NAME = "bench.test"
OUTSIDE = "127.0.0.2"
"""Where visitors' listener is: 127.0.0.1 is the server itself, which no limit holds for."""
MOST_STREAMS = 4096
ROLES = ("nginx", "backend", "litellm")
TEMPLATES = {
    "nginx.conf": "templates/nginx/nginx.conf.j2",
    "backend.service": "templates/systemd/millrace-backend@.service.j2",
    "litellm.service": "templates/systemd/millrace-litellm.service.j2",
    "etc/backend/settings.json": "roles/backend/templates/etc/millrace/backend/settings.json.j2",
    "etc/backend/keys.json": "roles/backend/templates/etc/millrace/backend/keys.json.j2",
    "etc/litellm/config.yaml": "roles/litellm/templates/etc/millrace/litellm/config.yaml.j2",
}


@dataclass(frozen=True)
class Ports:
    """Where the hops listen."""

    engine: int
    gateway: int
    metrics: int
    http: int
    https: int


@dataclass(frozen=True)
class Rendered:
    """A chain's files, all below one folder."""

    home: Path
    plan: Mapping[str, Any]
    client_key: str

    def unit(self, name: str) -> Unit:
        """Return what a service runs; its credentials are there."""
        credentials = self.home / f"credentials/{name}"
        text = self.placed((self.home / f"{name}.service").read_text())
        unit = read_unit(text, "a", str(credentials))
        for secret in unit.credentials:
            if not (credentials / secret).exists():
                shutil.copy(self.home / f"etc/{name}/{secret}", credentials / secret)
        return unit

    def placed(self, text: str) -> str:
        """Return a configuration with this machine's paths."""
        return text.replace("/run/millrace-backend", f"{self.home}/run/millrace-backend")


def render(
    home: Path, ports: Ports, venvs: Mapping[str, Path], *, engine_key: str, model: str,
    workers: int = 0, settings: Mapping[str, Any] | None = None,
) -> Rendered:  # fmt: skip
    """Render a chain below `home`.

    `venvs`: where the environments of `backend` and `litellm` lie. `workers`: of the gateway; 0
    lets the plan decide. `settings` are an owner's besides. Raises UnavailableError.
    """
    plan = _plan(ports, model, workers)
    keys = {name: secrets.token_urlsafe(32) for name in ("gateway", "client", "session")}
    for folder in (
        "etc/backend",
        "etc/litellm",
        "run/millrace-backend-a",
        "run/millrace-backend-b",
    ):
        (home / folder).mkdir(parents=True)
    _lay_out(home, venvs)
    given = {
        "ansible_python_interpreter": sys.executable,
        "ansible_host": OUTSIDE,
        "millrace_plan": plan,
        "litellm_root": f"{home}/litellm",
        "litellm_config_dir": f"{home}/etc/litellm",
        "litellm_engine_key": engine_key,
        "litellm_gateway_key": f"sk-{keys['gateway']}",
        "backend_root": f"{home}/backend",
        "backend_config_dir": f"{home}/etc/backend",
        "backend_gateway_key": f"sk-{keys['gateway']}",
        "backend_session_secret": keys["session"],
        "backend_client_keys": {"bench": keys["client"]},
        "backend_most_streams": MOST_STREAMS,
        "tls_domains": [NAME],
        "nginx_http_port": ports.http,
        "nginx_https_port": ports.https,
        "nginx_http3": "false",
        "nginx_tls_dir": str(home),
        "nginx_page_root": "",
        # All that is asked here comes from one address.
        "nginx_address_requests_per_second": 100_000,
        "nginx_address_requests_burst": 100_000,
        **(settings or {}),
    }
    _run_ansible(home, given)
    rendered = Rendered(home, plan, keys["client"])
    settings_file = home / "etc/backend/settings.json"
    settings_file.write_text(rendered.placed(settings_file.read_text()))
    for name in ("backend", "litellm"):
        (home / f"credentials/{name}").mkdir(parents=True)
    (home / "credentials/backend/gateway_key").write_text(f"sk-{keys['gateway']}\n")
    (home / "credentials/backend/session_secret").write_text(keys["session"] + "\n")
    return rendered


def place_nginx(rendered: Rendered, *, tls: bool) -> Path:
    """Place nginx's configuration on this machine and return where it lies.

    Without TLS, so that every chain is compared over plain connections; it listens on loopback
    addresses alone.
    """
    home = rendered.home
    text = rendered.placed((home / "nginx.conf").read_text())
    text = re.sub(r"\blisten (\d+)(?=[ ;])", rf"listen {OUTSIDE}:\1", text)
    if not tls:
        text = re.sub(r"^( *listen \S+)(?: ssl| http2)+", r"\1", text, flags=re.M)
        text = re.sub(r"^ *http2 on;\n", "", text, flags=re.M)
    # The log goes where a file can be written; a line for each request, as on a server.
    text = re.sub(r"(error_log) \S+", rf"\1 {home}/error.log", text)
    # Other lines of that kind are no log: they tell the backend how an answer ended.
    text = re.sub(r"(access_log) syslog:server=unix:/dev/log\S*", rf"\1 {home}/access.log", text)
    text = text.replace("include /etc/nginx/modules-enabled/*.conf;", "")
    text = text.replace("include /etc/nginx/mime.types;", "")
    make_certificate(home)
    return write_nginx(home, text)


def write_nginx(home: Path, text: str) -> Path:
    """Write a configuration for an nginx of the bench's own: its user and folders; return where."""
    text = re.sub(r"^pid .*$", "", text, flags=re.M)
    text = re.sub(r"^user .*$", "", text, flags=re.M)
    lines = [f"pid {home}/nginx.pid;", "daemon off;"]
    if os.geteuid() == 0:
        lines.append("user root;")
    folders = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{name}_temp_path {home}/temp_{name}; " for name in folders)
    text = text.replace("http {", f"http {{\n    {paths}", 1)
    path = home / "nginx.bench.conf"
    path.write_text("\n".join([*lines, text]))
    return path


def make_certificate(home: Path) -> None:
    """Make a certificate as tls_source self_signed has it: an elliptic curve."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    made = ["-subj", f"/CN={NAME}", "-keyout", f"{home}/server.key", "-out", f"{home}/server.crt"]
    if shutil.which("openssl") is None:
        raise UnavailableError("openssl is not there: apt-get install openssl")
    subprocess.run(["openssl", "req", "-x509", *curve, *made], check=True, capture_output=True)


def _plan(ports: Ports, model: str, workers: int) -> dict[str, Any]:
    plan = serving_plan(
        {
            "device": "cpu",
            "model": "Qwen/Qwen3-0.6B",
            "served_name": model,
            "models_dir": "/var/lib/millrace/models",
            "kv_cache_mib": 1024,
            "engine_port": ports.engine,
            "gateway_port": ports.gateway,
            "metrics_port": ports.metrics,
            "cores": os.cpu_count() or 1,
        },
        {"gpus": []},
    )
    if workers:
        plan["gateway"]["workers"] = workers
    return plan


def _lay_out(home: Path, venvs: Mapping[str, Path]) -> None:
    """Make releases and settings look as on a server: app, venv and the instance's, by links."""
    (home / "etc/backend/a").symlink_to(".")
    for name, current in (("litellm", "litellm/current"), ("backend", "backend/a")):
        folder = home / current
        folder.mkdir(parents=True)
        (folder / "app").symlink_to(ROOT / "app")
        if name in venvs:
            (folder / "venv").symlink_to(venvs[name])


def _facts() -> dict[str, Any]:
    """Return the facts of the Debian whose configuration the nginx here takes."""
    newer = nginx_version() >= (1, 25)
    return {
        "distribution": "Debian",
        "distribution_major_version": "13" if newer else "12",
        "systemd": {"version": 257 if newer else 252, "features": ""},
        "all_ipv4_addresses": [OUTSIDE],
        "all_ipv6_addresses": [],
    }


def _run_ansible(home: Path, given: Mapping[str, Any]) -> None:
    group = ROOT / "inventory/group_vars/millrace"
    files = [
        ROOT / f"roles/{role}/{kind}/main.yml" for kind in ("defaults", "vars") for role in ROLES
    ]
    files += [group / "settings.yml", group / "wiring.yml"]
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(file) for file in files if file.exists()],
        "tasks": [
            {"fake_facts": {"facts": _facts()}},
            *(
                {
                    "ansible.builtin.template": {
                        "src": f"{ROOT}/{source}",
                        "dest": f"{home}/{target}",
                    }
                }
                for target, source in TEMPLATES.items()
            ),
        ],
    }
    # JSON is YAML as well.
    (home / "render.yml").write_text(json.dumps([play]))
    (home / "given.json").write_text(json.dumps(given))
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_ACTION_PLUGINS": str(ROOT / "tests/unit/actions"),
        "ANSIBLE_HOME": str(home / "ansible"),
        "ANSIBLE_LOCAL_TEMP": str(home / "ansible/tmp"),
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_LOCALHOST_WARNING": "0",
    }
    command = [sys.executable, "-m", "ansible", "playbook", "-c", "local", "-i", "localhost,",
               "-e", f"@{home}/given.json", str(home / "render.yml")]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UnavailableError(
            f"the templates could not be rendered:\n{done.stdout[-3000:]}{done.stderr}"
        )
