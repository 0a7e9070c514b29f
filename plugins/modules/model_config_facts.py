#!/usr/bin/python
"""Observe a model's own config.json, which says how much memory it needs. Read-only."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: model_config_facts
short_description: Read a model's config.json, from its folder or from the hub
description:
  - Read-only. What it means is the C(serving_plan) filter's work. A file that cannot be had is no
    failure here, since preflight says what is wrong with a model.
options:
  id:
    description: The model as owner/name, or its folder on the server.
    type: str
    required: true
  revision:
    description: A commit; empty for the newest.
    type: str
    default: ""
  path:
    description: Where the model lies, or will.
    type: path
    required: true
  hub_url:
    description: The model hub's address.
    type: str
    required: true
  hub_token:
    description: Token for gated models.
    type: str
    default: ""
author: Millrace
"""

RETURN = r"""
config:
  description: The file as a dictionary; empty where there is none.
  returned: always
  type: dict
problem:
  description: Why there is none.
  returned: always
  type: str
"""

CONNECT_SECONDS = 10
LARGEST_BYTES = 1 << 20


def of_folder(path: Path) -> tuple[dict[str, Any], str]:
    """Return the config.json of a folder, or why there is none."""
    try:
        found = json.loads((path / "config.json").read_bytes())
    except OSError as error:
        return {}, f"{path}/config.json: {error.strerror}"
    except ValueError:
        return {}, f"{path}/config.json is not JSON"
    return (found, "") if isinstance(found, dict) else ({}, f"{path}/config.json is no object")


def of_hub(name: str, revision: str, hub: str, token: str) -> tuple[dict[str, Any], str]:
    """Return the config.json of a model on the hub, or why there is none."""
    commit = urllib.parse.quote(revision or "main", safe="")
    request = urllib.request.Request(  # noqa: S310
        f"{hub.rstrip('/')}/{urllib.parse.quote(name)}/resolve/{commit}/config.json",
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as answer:  # noqa: S310
            found = json.loads(answer.read(LARGEST_BYTES))
    except urllib.error.HTTPError as error:
        return {}, f"the hub answers {error.code} for {name}'s config.json"
    except (OSError, http.client.HTTPException) as error:
        return {}, f"the hub cannot be reached: {error}"
    except ValueError:
        return {}, f"{name}'s config.json on the hub is not JSON"
    return (found, "") if isinstance(found, dict) else ({}, f"{name}'s config.json is no object")


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "id": {"type": "str", "required": True},
            "revision": {"type": "str", "default": ""},
            "path": {"type": "path", "required": True},
            "hub_url": {"type": "str", "required": True},
            "hub_token": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    asked = module.params
    config, problem = of_folder(Path(asked["path"]))
    if not config and not asked["id"].startswith("/"):
        config, problem = of_hub(
            asked["id"], asked["revision"], asked["hub_url"], asked["hub_token"]
        )
    module.exit_json(changed=False, config=config, problem=problem)


if __name__ == "__main__":
    main()
