"""What the host tests of secrets look with finds what is planted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from unit_kit import ROOT

sys.path.insert(0, str(ROOT / "tests/host"))
import leak_probe
from leaks import as_base64, needles_of, texts_of, told_in

SECRET = "Zq7vN2cT9xLw4RbK"
PROBE = ROOT / "tests/host/leak_probe.py"


def made_by(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "kind", [["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], ["-algorithm", "ED25519"],
             ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]],
)  # fmt: skip
def test_a_private_key_is_known_by_a_line_that_is_in_no_certificate(
    kind: list[str], tmp_path: Path
) -> None:
    key, certificate = tmp_path / "a.key", tmp_path / "a.crt"
    key.write_text(made_by("openssl", "genpkey", *kind))
    certificate.write_text(
        made_by("openssl", "req", "-x509", "-key", str(key), "-subj", "/CN=a", "-days", "1")
    )
    public = certificate.read_text() + made_by("openssl", "pkey", "-in", str(key), "-pubout")
    (line,) = texts_of(key.read_text())
    assert line in key.read_text()
    assert line not in public
    assert texts_of(certificate.read_text()) == []
    assert list(needles_of(tmp_path)) == ["a.key"]


def test_every_file_of_the_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "tunnel").mkdir()
    (tmp_path / "engine_key").write_text(f"{SECRET}\n")
    (tmp_path / "tunnel/credentials.json").write_text(
        json.dumps({"AccountTag": "f" * 32, "TunnelSecret": SECRET, "TunnelID": "1" * 32})
    )
    (tmp_path / "service.json").write_text('{"key_file": "/home/me/secrets/client_owner"}')
    needles = needles_of(tmp_path)
    assert set(needles) == {"engine_key", "tunnel/credentials.json"}
    assert needles["tunnel/credentials.json"] == [SECRET, as_base64(SECRET)]
    assert told_in(f"changed: {SECRET}", needles) == ["engine_key", "tunnel/credentials.json"]
    encoded = made_by("sh", "-c", f"echo {SECRET} | base64")
    assert told_in(f'"content": "{encoded}"', needles) == ["engine_key", "tunnel/credentials.json"]
    assert told_in("nothing", needles) == []


def test_files_are_found_with_who_may_read_them(tmp_path: Path) -> None:
    (tmp_path / "open.conf").write_text(f"key={SECRET}\n")
    (tmp_path / "binary").write_bytes(b"\0\1" + SECRET.encode() + b"\0")
    (tmp_path / "other").write_text("nothing\n")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/wheel.py").write_text(SECRET)
    found = leak_probe.in_files({"engine_key": [SECRET]}, [str(tmp_path)])
    assert sorted(Path(str(file["path"])).name for file in found) == ["binary", "open.conf"]
    assert {tuple(file["secrets"]) for file in found} == {("engine_key",)}  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as somebody else")
def test_reading_is_tried_as_each_user(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    file = tmp_path / "key"
    file.write_text(SECRET)
    users = [("daemon", 1, 1), ("nobody", 65534, 65534)]
    file.chmod(0o600)
    assert leak_probe.readers(str(file), users) == []
    file.chmod(0o640)
    os.chown(file, 0, 1)
    assert leak_probe.readers(str(file), users) == ["daemon"]
    file.chmod(0o644)
    assert leak_probe.readers(str(file), users) == ["daemon", "nobody"]


@pytest.mark.parametrize("where", ["cmdline", "environ"])
def test_processes_are_watched_while_they_come_and_go(where: str) -> None:
    with subprocess.Popen(
        [sys.executable, PROBE, "watch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdin is not None
        watch.stdin.write(json.dumps({"engine_key": [SECRET]}) + "\n")
        watch.stdin.flush()
        assert watch.stdout is not None
        assert watch.stdout.readline() == "watching\n"
        argument, environment = (SECRET, {}) if where == "cmdline" else ("0", {"KEY": SECRET})
        for _ in range(5):
            subprocess.run(
                ["sh", "-c", "sleep 0.3", argument], env={**os.environ, **environment}, check=True
            )
        told, _ = watch.communicate(timeout=30)
    found = json.loads(told)
    assert {name for name, _ in found["processes"]} == {"engine_key"}
    assert {place.split()[0] for _, place in found["processes"]} == {where}
    assert found["looks"] > 5


def test_what_a_command_prints_is_told_by_name_alone() -> None:
    needles = {"engine_key": [SECRET], "other": ["never printed"]}
    assert leak_probe.in_output(needles, "printf", f"x\\n__CURSOR={SECRET}\\n") == ["engine_key"]
    assert leak_probe.in_output(needles, "echo", "nothing") == []
