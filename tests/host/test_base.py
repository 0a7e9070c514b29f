"""The system under the services."""

from __future__ import annotations

import json

from servers import Server


def test_time_zone(server: Server) -> None:
    assert server.run("timedatectl show -p Timezone --value").strip() == "Europe/London"


def test_journal_is_bounded_and_kept(server: Server) -> None:
    said = server.run("systemd-analyze cat-config systemd/journald.conf")
    settings = dict(
        line.split("=", 1) for line in said.splitlines() if "=" in line and line[0] not in "#;"
    )
    assert settings["SystemMaxUse"] == "1024M"
    assert settings["MaxRetentionSec"] == "1month"
    assert server.run("ls -d /var/log/journal/*/system.journal").strip()


def test_security_updates_come_by_themselves(server: Server) -> None:
    said = server.run("apt-config dump")
    assert 'APT::Periodic::Unattended-Upgrade "1";' in said
    assert 'APT::Periodic::Update-Package-Lists "1";' in said
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in said
    assert server.run("systemctl is-enabled apt-daily-upgrade.timer").strip() == "enabled"
    tried = server.run("unattended-upgrade --dry-run --debug 2>&1 | head -40", timeout=300)
    assert "Allowed origins are" in tried
    assert "label=Debian-Security" in tried


def test_service_users_cannot_log_in(server: Server) -> None:
    for name in ("millrace-vllm", "millrace-litellm", "millrace-backend"):
        _, _, uid, _, _, home, shell = server.run(f"getent passwd {name}").strip().split(":")
        assert int(uid) < 1000
        assert home == "/nonexistent"
        assert shell == "/usr/sbin/nologin"
        assert server.run(f"passwd -S {name}").split()[1] == "L"


def test_the_plan_is_on_the_server(server: Server) -> None:
    plan = json.loads(server.run("cat /etc/millrace/plan.json"))
    assert plan["engines"][0]["model"]["served_name"] == "recital"
    assert plan["engines"][0]["device"] == "cpu"
