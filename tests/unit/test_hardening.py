"""What the role `hardening` writes: what it must never touch, and what an owner may choose."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from unit_kit import ROOT

ROLE = ROOT / "roles/hardening"
DEFAULTS: dict[str, Any] = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
CONSTANTS: dict[str, Any] = yaml.safe_load((ROLE / "vars/main.yml").read_text())

# What a card, a boot, a model's store, a container, a tunnel or the firewall needs.
NEEDED = (
    "nvidia", "nvidia-uvm", "nvidia-modeset", "nvidia-drm", "nvidia-peermem", "vfat", "squashfs",
    "overlay", "ext4", "xfs", "btrfs", "nfs", "cifs", "fuse", "nf_tables", "tun", "wireguard",
    "bridge", "veth", "loop", "dm_mod", "iso9660", "nvme", "uas", "usb-storage", "usbhid",
)  # fmt: skip
# Each would stop CUDA, its sharing between workers, containers, or the way in.
UNTOUCHED = (
    "vm.overcommit_memory", "vm.max_map_count", "net.ipv4.ip_forward", "kernel.shmmax",
    "user.max_user_namespaces", "kernel.modules_disabled", "net.ipv6.conf.*.accept_ra",
    "net.ipv4.icmp_echo_ignore_all", "net.ipv6.conf.*.disable_ipv6",
)  # fmt: skip


def render(name: str, **given: Any) -> str:
    """Return one of the role's files, with an owner's settings in place of the defaults."""
    environment = jinja2.Environment(
        trim_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["bool"] = bool
    template = environment.from_string((ROLE / f"templates/{name}.j2").read_text())
    return template.render(ansible_managed="", **{**DEFAULTS, **CONSTANTS, **given})


def kernel(**given: Any) -> dict[str, str]:
    """Return the kernel's settings."""
    lines = render("etc/sysctl.d/99-zz-millrace.conf", **given).splitlines()
    pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    settings = {key.strip(): value.strip() for key, value in pairs}
    assert len(settings) == len(pairs), "one of them stands twice"
    return settings


def blocked(**given: Any) -> set[str]:
    """Return the modules that are never loaded."""
    text = render("etc/modprobe.d/millrace-hardening.conf", **given)
    return set(re.findall(r"^install (\S+) /bin/false$", text, re.M))


def test_what_the_service_needs_is_never_blocked() -> None:
    assert blocked() & set(NEEDED) == set()
    assert {"dccp", "sctp", "rds", "tipc", "firewire-core"} <= blocked()


def test_an_owner_gets_a_module_back_and_may_keep_usb_disks_out() -> None:
    assert blocked() - blocked(hardening_allowed_modules=["sctp", "udf"]) == {"sctp", "udf"}
    assert blocked(hardening_usb_storage=False) - blocked() == {"usb-storage", "uas"}


def test_no_kernel_setting_stops_what_the_service_does() -> None:
    settings = kernel()
    assert set(settings) & set(UNTOUCHED) == set()
    # 2 and 3 end what NCCL and PyTorch share between workers.
    assert settings["kernel.yama.ptrace_scope"] == "1"
    # An unreachable server is no harder.
    assert settings["net.ipv4.conf.*.rp_filter"] == "2"


def test_an_owner_chooses_where_packets_come_from_and_who_makes_namespaces() -> None:
    assert kernel(hardening_rp_filter=1)["net.ipv4.conf.*.rp_filter"] == "1"
    name = "kernel.unprivileged_userns_clone"
    assert kernel()[name] == "0"
    assert name not in kernel(hardening_unprivileged_namespaces=True)


def test_a_file_sorts_after_the_distributions() -> None:
    assert Path(CONSTANTS["__hardening_sysctl"]).name > "99-protect-links.conf"


def test_needrestart_leaves_what_streams_alone(tmp_path: Path) -> None:
    perl = shutil.which("perl")
    if perl is None:
        pytest.skip("perl is not installed here; needrestart reads its settings as perl")
    file = tmp_path / "millrace.conf"
    file.write_text(render("etc/needrestart/conf.d/millrace.conf"))
    asked = (
        "our %nrconf; do $ARGV[0] or die; for my $unit (@ARGV[1..$#ARGV]) {"
        " print(grep({ $unit =~ /$_/ } keys %{$nrconf{override_rc}}) ? 0 : 1) }"
    )
    units = ["millrace-vllm@main.service", "millrace-backend@a.service", "nginx.service"]
    done = subprocess.run(
        [perl, "-e", asked, file, *units, "ssh.service", "cron.service"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "00011"


# Private by default --------------------------------------------------------------------------

# Each name is read by the package that it is for: `grep -r NAME` in its release says where.
SILENT = {
    "millrace-vllm@.service": {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    },
    "millrace-litellm.service": {
        "LITELLM_OFFLINE_MODE": "true",
        "LITELLM_TELEMETRY_DISABLED": "true",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
        "LITELLM_LOCAL_BLOG_POSTS": "True",
        "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
        "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
        "LITELLM_DISABLE_LATEST_RELEASE_CHECK": "True",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
    },
}


@pytest.mark.parametrize("unit", sorted(SILENT))
def test_every_switch_that_stops_calls_out_is_set(unit: str) -> None:
    text = (ROOT / f"templates/systemd/{unit}.j2").read_text()
    lines = re.findall(r"^Environment=(.*)$", text, re.M)
    told = dict(pair for line in lines for pair in re.findall(r"(\w+)=(\S+)", line))
    assert {name: told.get(name) for name in SILENT[unit]} == SILENT[unit]
