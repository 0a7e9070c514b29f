"""Break what each host check guards, see the check fail, mend it, and see it pass.

    python tests/host/breaks.py [-k WORD]      against the servers of MILLRACE_TEST_INVENTORY

Not part of `./millrace test`: it proves the checks, not the product. Run it after changing a check.
Prints a row per check; exit status 1 when a check did not notice its break.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from servers import ROOT, Server, servers

NGINX = "/etc/nginx/nginx.conf"
RELOAD = "nginx -s reload; sleep 1"
VLLM = "millrace-vllm@main"
ENGINE = "/etc/millrace/vllm/main.yaml"


def keep(file: str) -> str:
    """Put a copy of `file` aside."""
    return f"cp -a {file} /root/kept.$(basename {file})"


def restore(file: str) -> str:
    """Bring the copy back."""
    return f"cp -a /root/kept.$(basename {file}) {file}"


@dataclass(frozen=True)
class Break:
    """One check, how to break what it guards, and how to mend it; shell commands on the server."""

    test: str
    broken_by: str
    do: str
    undo: str


def in_nginx(test: str, told: str, expression: str) -> Break:
    """A break by one sed expression in nginx's configuration."""
    do = f"{keep(NGINX)}; sed -i '{expression}' {NGINX}; {RELOAD}"
    return Break(test, told, do, f"{restore(NGINX)}; {RELOAD}")


def in_unit(test: str, told: str, unit: str, lines: str, restart: bool = True) -> Break:
    """A break by a drop-in for a unit."""
    again = f"systemctl daemon-reload; systemctl restart '{unit}'; sleep 3"
    if not restart:
        again = "systemctl daemon-reload; sleep 3"
    # A template's drop-ins are those of all its instances.
    folder = f"/etc/systemd/system/{unit.replace('@*', '@')}.service.d"
    do = f"mkdir -p {folder}; printf '[Service]\\n{lines}\\n' > {folder}/99-break.conf; {again}"
    return Break(test, told, do, f"rm {folder}/99-break.conf; {again}")


APT = "/etc/apt/apt.conf.d/52millrace"
KEY = "/etc/millrace/backend/gateway_key"
SECRETS = "test_secrets.py::test_secrets_are_in_no_"
# What the journal took cannot be taken out of it, so that it is moved on and its past let go of.
KEY_OUT_OF_THE_JOURNAL = "journalctl --rotate; journalctl --vacuum-time=1s"
BACKEND = "/opt/millrace/backend/current/app/backend"
RESTART = "millrace-handover --again; sleep 1"


def in_backend(test: str, told: str, file: str, expression: str) -> Break:
    """A break by one sed expression in the backend's source."""
    path = f"{BACKEND}/{file}"
    do = f"{keep(path)}; sed -i '{expression}' {path}; {RESTART}"
    return Break(test, told, do, f"{restore(path)}; {RESTART}")


OPENED = "nft add rule inet millrace input tcp dport 9999 accept"
LOADED = "systemctl reload millrace-firewall"
NFTABLES = "/etc/systemd/system/nftables.service.d/millrace.conf"
DROP_IN = "/etc/ssh/sshd_config.d/00-millrace.conf"

BREAKS = [
    *(Break(f"test_firewall.py::{test}", "a port opened by hand", OPENED, LOADED) for test in (
        "test_the_whole_table_is_what_was_rendered",
        "test_nothing_more_is_opened_than_the_edge_and_ssh",
        "test_from_outside_the_edge_answers_and_nothing_else")),
    Break("test_firewall.py::test_other_tables_stay_and_ours_outlives_the_distributions_unit",
          "nothing added to the distribution's unit",
          f"{keep(NFTABLES)}; rm {NFTABLES}; systemctl daemon-reload",
          f"{restore(NFTABLES)}; systemctl daemon-reload; systemctl stop nftables; {LOADED}"),
    *(Break(f"test_ssh.py::{test}", "the distribution's sshd",
            f"{keep(DROP_IN)}; rm {DROP_IN}; systemctl reload ssh; sleep 1",
            f"{restore(DROP_IN)}; systemctl reload ssh; sleep 1") for test in (
        "test_ssh_audit_finds_nothing", "test_nobody_comes_in_without_a_key")),
    Break("test_base.py::test_time_zone", "another zone", "timedatectl set-timezone UTC",
          "timedatectl set-timezone Europe/London"),
    Break("test_base.py::test_journal_is_bounded_and_kept", "bounds taken out",
          "mv /etc/systemd/journald.conf.d/millrace.conf /root/",
          "mv /root/millrace.conf /etc/systemd/journald.conf.d/"),
    Break("test_base.py::test_security_updates_come_by_themselves", "periodic upgrade off",
          f"sed -i 's/Unattended-Upgrade \"1\"/Unattended-Upgrade \"0\"/' {APT}",
          f"sed -i 's/Unattended-Upgrade \"0\"/Unattended-Upgrade \"1\"/' {APT}"),
    Break("test_base.py::test_service_users_cannot_log_in", "a shell for a service user",
          "usermod -s /bin/bash millrace-litellm", "usermod -s /usr/sbin/nologin millrace-litellm"),
    Break("test_base.py::test_the_plan_is_on_the_server", "plan removed",
          "mv /etc/millrace/plan.json /root/", "mv /root/plan.json /etc/millrace/"),
    Break("test_units.py::test_runs_now_and_after_a_boot", "gateway not enabled",
          "systemctl disable millrace-litellm", "systemctl enable millrace-litellm"),
    in_unit("test_units.py::test_never_gives_up", "a start limit", "millrace-backend@*",
            "[Unit]\\nStartLimitIntervalSec=10", restart=False),
    in_unit("test_units.py::test_sandbox", "privileges allowed", "millrace-litellm",
            "NoNewPrivileges=no\\nPrivateTmp=no", restart=False),
    in_unit("test_units.py::test_exposure", "all capabilities", "millrace-backend@*",
            "CapabilityBoundingSet=~\\nSystemCallFilter=\\nPrivateDevices=no", restart=False),
    in_unit("test_units.py::test_not_root", "runs as root", "millrace-backend@*", "User=root"),
    in_unit("test_units.py::test_systemd_analyze_has_nothing_to_say", "a key systemd does not know",
            "millrace-backend@*", "MillraceNonsense=1", restart=False),
    in_unit(f"{SECRETS}argument_no_environment_and_no_journal", "the gateway's key in an environment",
            "millrace-backend@*", "EnvironmentFile=/root/env"),
    Break(f"{SECRETS}argument_no_environment_and_no_journal", "a key as an argument",
          f"systemd-run -q --unit=break-argument -p StandardInput=file:{KEY} bash -c 'read k; exec -a "
          "break$k sleep 600'; sleep 1", "systemctl stop break-argument"),
    Break(f"{SECRETS}argument_no_environment_and_no_journal", "a key in the journal",
          f"cat {KEY} | systemd-cat -t break", KEY_OUT_OF_THE_JOURNAL),
    Break("test_secrets.py::test_each_service_reads_its_own_and_nobody_anothers", "key file readable by all",
          f"chmod 0644 {KEY}", f"chmod 0600 {KEY}"),
    Break("test_secrets.py::test_each_service_reads_its_own_and_nobody_anothers", "the session's secret is the engine's too",
          "install -m 0640 -g millrace-vllm /etc/millrace/backend/session_secret /opt/break",
          "rm /opt/break"),
    Break("test_secrets.py::test_private_keys_are_roots_alone", "nginx's workers read the key",
          "chgrp www-data /etc/millrace/tls/server.key; chmod 0640 /etc/millrace/tls/server.key",
          "chgrp root /etc/millrace/tls/server.key; chmod 0600 /etc/millrace/tls/server.key"),
    Break("test_secrets.py::test_what_each_reads_comes_to_it", "gateway stopped",
          "systemctl stop millrace-litellm", "systemctl start millrace-litellm; sleep 20"),
    Break("test_units.py::test_only_the_edge_listens_outside", "something listens on 9999",
          "systemd-run --unit=break-listen python3 -m http.server 9999; sleep 1",
          "systemctl stop break-listen"),
    Break("test_units.py::test_releases_are_side_by_side", "current is a folder of its own",
          "mv /opt/millrace/litellm/current /root/; mkdir /opt/millrace/litellm/current",
          "rmdir /opt/millrace/litellm/current; mv /root/current /opt/millrace/litellm/"),
    in_nginx("test_api.py::test_it_streams_event_by_event", "nginx buffers",
             "s/proxy_buffering off/proxy_buffering on/"),
    in_nginx("test_page.py::test_the_page_is_there_and_confined", "no policy",
             "s/add_header Content-Security-Policy.*//"),
    in_nginx("test_page.py::test_assets_are_kept_and_compressed", "nothing compressed",
             "s/gzip_static on/gzip_static off/"),
    Break("test_page.py::test_the_pages_files_are_roots_and_everybodys", "a file of somebody else's",
          "chown nobody /opt/millrace/web/current/index.html",
          "chown root /opt/millrace/web/current/index.html"),
    in_nginx("test_api.py::test_plain_http_sends_on", "port 80 says 404",
             "s/return 308.*/return 404;/"),
    in_nginx("test_api.py::test_nothing_else_is_open", "an open /metrics",
             "s#location = /healthz {#location = /metrics { return 200; }\\nlocation = /healthz {#"),
    in_nginx("test_api.py::test_old_tls_is_refused", "TLS 1.0 allowed",
             "s/ssl_protocols .*/ssl_protocols TLSv1 TLSv1.1 TLSv1.2; ssl_ciphers ALL:@SECLEVEL=0;/"),
    in_nginx("test_logs.py::test_one_id_through_every_journal", "nginx hands on no id",
             "s/proxy_set_header X-Request-Id.*//"),
    in_nginx("test_logs.py::test_no_word_of_anybody_in_any_log", "nginx logs bodies",
             "s/id=$request_id/id=$request_id $request_body/"),
    Break("test_logs.py::test_no_word_of_anybody_in_any_log", "vLLM logs requests",
          f"{keep(ENGINE)}; echo 'enable-log-requests: true' >> {ENGINE}; systemctl restart {VLLM}",
          f"{restore(ENGINE)}; systemctl restart {VLLM}"),
    in_unit("test_logs.py::test_who_left_is_in_every_journal", "LiteLLM without our hook",
            "millrace-litellm", "Environment=LITELLM_WORKER_STARTUP_HOOKS="),
    in_nginx("test_api.py::test_metrics_are_for_this_server_alone", "nginx hands on all paths",
             "s#location / {#location = /nowhere {#; s#location /v1/ {#location / {#; "
             "s#return 40[45];#break;#"),
    Break("test_api.py::test_status_tells_of_every_hop_and_of_the_last_check", "gateway stopped",
          "systemctl stop millrace-litellm", "systemctl start millrace-litellm"),
    in_nginx("test_api.py::test_every_byte_arrives", "nginx changes the type",
             "s/proxy_buffering off;/proxy_buffering off; proxy_hide_header Cache-Control;/"),
    Break("test_api.py::test_models", "another list",
          f"{keep('/etc/millrace/backend/settings.json')}; sed -i 's/\"recital\"/\"other\"/' "
          f"/etc/millrace/backend/settings.json; {RESTART}",
          f"{restore('/etc/millrace/backend/settings.json')}; {RESTART}"),
    in_backend("test_api.py::test_without_a_good_key_nothing", "wrong keys pass", "auth.py",
               "s/def _check(self, scope: Scope).*/&\\n        return None/"),
    in_unit("test_api.py::test_who_leaves_before_a_plain_answer_frees_the_engine",
            "LiteLLM without our hook", "millrace-litellm",
            "Environment=LITELLM_WORKER_STARTUP_HOOKS="),
    in_unit("test_api.py::test_the_engines_refusal_reaches_the_caller",
            "LiteLLM without our hook", "millrace-litellm",
            "Environment=LITELLM_WORKER_STARTUP_HOOKS="),
    in_nginx("test_deploys.py::test_every_stream_ends_whole", "a reload gives streams 2 s",
             "s/worker_shutdown_timeout .*/worker_shutdown_timeout 2s;/"),
    in_unit("test_deploys.py::test_every_stream_ends_whole", "an old instance is killed after 1 s",
            "millrace-backend@*", "TimeoutStopSec=1", restart=False),
    Break("test_deploys.py::test_only_the_backends_user_opens_its_private_socket", "open to all",
          "chmod 755 /run/millrace-backend-*; chmod 666 /run/millrace-backend-*/private.sock",
          "chmod 700 /run/millrace-backend-*; chmod 600 /run/millrace-backend-*/private.sock"),
    Break("test_streamcheck.py::test_the_timer_keeps_the_last_results", "timer stopped",
          "systemctl stop millrace-streamcheck.timer", "systemctl start millrace-streamcheck.timer"),
    in_unit("test_units.py::test_the_check_is_confined_as_well", "all capabilities",
            "millrace-streamcheck",
            "CapabilityBoundingSet=~\\nSystemCallFilter=\\nPrivateDevices=no", restart=False),
    in_unit("test_units.py::test_the_guard_is_confined_as_well_and_content", "all capabilities",
            "millrace-guard@main", "CapabilityBoundingSet=~\\nSystemCallFilter=", restart=False),
    Break("test_units.py::test_the_guard_is_confined_as_well_and_content", "a report of root's own",
          "chmod 700 /run/millrace/hardware", "chmod 755 /run/millrace/hardware"),
    in_nginx("test_streamcheck.py::test_the_healthy_chain_passes", "nginx buffers",
             "s/proxy_buffering off/proxy_buffering on/"),
    in_nginx("test_streamcheck.py::test_every_way_is_asked", "no HTTP/2", "s/ ssl http2/ ssl/"),
    Break("test_outside.py::test_only_the_list_is_open", "a rule by hand, for nobody who listens",
          "nft insert rule inet millrace input tcp dport 9999 accept",
          "systemctl restart millrace-firewall"),
    in_nginx("test_outside.py::test_tls_has_no_hole", "TLS 1.0 allowed",
             "s/ssl_protocols .*/ssl_protocols TLSv1 TLSv1.1 TLSv1.2;/; s/ssl_ciphers .*/ssl_ciphers ALL:@SECLEVEL=0;/"),
    Break("test_outside.py::test_ssh_is_modern", "SHA-1 for messages",
          "echo 'MACs hmac-sha1' > /etc/ssh/sshd_config.d/0-break.conf; systemctl reload ssh",
          "rm /etc/ssh/sshd_config.d/0-break.conf; systemctl reload ssh"),
    in_nginx("test_outside.py::test_slow_clients_harm_nobody", "few connections a worker",
             "s/worker_connections .*/worker_connections 300;/"),
    in_nginx("test_outside.py::test_nothing_is_smuggled_by_http2", "any answer is 200",
             "s#location /v1/ {#location /v1/ { return 200;#"),
    in_nginx("test_outside.py::test_no_way_round_to_what_is_inside", "an open /metrics",
             "s#location = /healthz {#location = /metrics { return 200; }\\nlocation = /healthz {#"),
    in_nginx("test_outside.py::test_another_name_is_told_nothing", "whoever asks is answered",
             "s/return 444;/return 200;/"),
    in_nginx("test_outside.py::test_who_lies_about_their_address_is_known_all_the_same",
             "X-Forwarded-For is believed",
             "s#keepalive_timeout#set_real_ip_from 0.0.0.0/0; real_ip_header X-Forwarded-For; keepalive_timeout#"),
    Break("test_api.py::test_alive_and_ready", "engine stopped for 70 s",
          f"systemctl stop {VLLM}; sleep 70", f"systemctl start {VLLM}"),
]  # fmt: skip


def passes(test: str) -> bool:
    """Run one check."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", f"tests/host/{test}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def prove(server: Server, item: Break) -> bool:
    """Break, expect failure, mend, expect success."""
    server.run("printf 'A=%s\\n' $(cat /etc/millrace/backend/gateway_key) > /root/env")
    server.run(item.do, timeout=200)
    try:
        noticed = not passes(item.test)
    finally:
        server.run(item.undo, timeout=300)
    for _ in range(6):
        if mended := passes(item.test):
            break
        time.sleep(5)
    server.run("rm -f /root/env")
    word = "noticed" if noticed else "NOT NOTICED"
    print(f"| {item.test} | {item.broken_by} | {word} | {'passes' if mended else 'STILL FAILS'} |",
          flush=True)  # fmt: skip
    return noticed and mended


def main() -> int:
    """Prove every check, or those whose name holds a word."""
    word = sys.argv[2] if len(sys.argv) > 2 and sys.argv[1] == "-k" else ""
    server = next(iter(servers().values()))
    print("| check | broken by | broken | mended |\n| --- | --- | --- | --- |")
    proved = [prove(server, item) for item in BREAKS if word in item.test]
    return 0 if all(proved) else 1


if __name__ == "__main__":
    sys.exit(main())
