"""The way to the servers: one Ansible run, which carries an order and brings back the answers."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = "playbooks/key.yml"


class RunError(Exception):
    """The run failed; the text is what Ansible printed."""


def carry_out(
    order: Mapping[str, Any], inventory: str, server: str, more: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Have `order` carried out on a server (empty: on all) and return each one's answer by name.

    Raises RunError; then no server was changed, unless one broke off in the middle of it. The
    order has hashes in it and no key: Ansible, its logs and its -vvv never see one.
    """
    with tempfile.TemporaryDirectory(prefix="millrace-key-") as folder:
        given = Path(folder) / "order.json"
        answers = Path(folder) / "answers"
        answers.mkdir()
        given.write_text(json.dumps({"key_order": order, "key_answers": str(answers)}))
        command = [
            str(Path(sys.executable).parent / "ansible-playbook"), PLAYBOOK,
            "-i", inventory, "-e", f"@{given}", *(["--limit", server] if server else []), *more,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        found = {path.stem: json.loads(path.read_text()) for path in answers.glob("*.json")}
    if done.returncode or not found:
        raise RunError(done.stdout.strip() or "Ansible said nothing")
    return found
