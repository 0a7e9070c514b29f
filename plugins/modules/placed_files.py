#!/usr/bin/python
"""Have folders and files as they should be, many in one go."""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: placed_files
short_description: have folders and files as they should be, many in one go
description:
  - Does what C(file), C(copy) and C(template) do one by one, in one visit to the server. Each of
    those is one or two visits, also where nothing changes, and each visit starts a Python there.
  - A file is written beside its place, checked, and moved there, so that it is never half of one.
  - Paths are taken in order. With --check nothing is written, and --diff shows what would be.
options:
  entries:
    description:
      - What should be where. Of I(template), I(src) and I(content) a file has exactly one.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where it is on the server.
        type: path
        required: true
      state:
        description: A file with this text, a folder (and what it is in), or nothing at all.
        type: str
        choices: [file, directory, absent]
        default: file
      template:
        description: A template on the controller, found as C(template) finds it.
        type: path
      src:
        description: A text file on the controller, found as C(copy) finds it.
        type: path
      content:
        description: The text itself.
        type: str
      owner:
        description: Whose it is.
        type: str
        default: root
      group:
        description: Which group's it is.
        type: str
        default: root
      mode:
        description: Who may do what with it. Left out, 0644 for files and 0755 for folders.
        type: raw
      validate:
        description: A command that judges a file before it is put in its place; %s is its name.
        type: str
"""

RETURN = """
changed_paths:
  description: Which of them were not as they should be.
  type: list
  returned: always
"""

OPTIONS: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["file", "directory", "absent"], "default": "file"},
    # The action of the same name makes content of both.
    "template": {"type": "path"},
    "src": {"type": "path"},
    # In base64, which no other text of the run holds: what is masked is masked everywhere.
    "content": {"type": "str", "no_log": True},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "raw"},
    "validate": {"type": "str"},
}
MODES = {"file": "0644", "directory": "0755"}

Difference = dict[str, Any]


def headed(path: str, before: Any, after: Any) -> Difference:
    """Return a difference as Ansible prints it."""
    return {"before_header": path, "after_header": path, "before": before, "after": after}


def state_of(path: Path) -> str:
    """Return what is there."""
    if path.is_dir():
        return "directory"
    return "file" if path.exists() or path.is_symlink() else "absent"


def attributed(module: AnsibleModule, entry: dict[str, Any]) -> Difference | None:
    """Set owner, group and mode; return what was different."""
    wanted = {**entry, "mode": entry["mode"] or MODES[entry["state"]]}
    found: Difference = {}
    arguments = module.load_file_common_arguments(wanted)
    if not module.set_fs_attributes_if_different(arguments, False, diff=found):
        return None
    return headed(entry["path"], found.get("before", {}), found.get("after", {}))


def have_absent(module: AnsibleModule, entry: dict[str, Any]) -> Difference | None:
    """Remove what is there."""
    path = Path(entry["path"])
    there = state_of(path)
    if there == "absent":
        return None
    if not module.check_mode:
        if there == "directory" and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return headed(str(path), {"state": there}, {"state": "absent"})


def have_directory(module: AnsibleModule, entry: dict[str, Any]) -> Difference | None:
    """Create a folder and those it is in."""
    path = Path(entry["path"])
    there = state_of(path)
    if there == "file":
        module.fail_json(msg=f"{path} should be a folder and is none.", path=str(path))
    if there == "directory":
        return attributed(module, entry)
    if not module.check_mode:
        missing = [folder for folder in path.parents if not folder.exists()]
        for folder in [*reversed(missing), path]:
            folder.mkdir()
            attributed(module, {**entry, "path": str(folder)})
    return headed(str(path), {"state": "absent"}, {"state": "directory"})


def written(module: AnsibleModule, entry: dict[str, Any], content: bytes) -> None:
    """Write a file beside its place, have it judged, and move it there."""
    handle, beside = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    if entry["validate"]:
        command = entry["validate"].replace("%s", beside)
        code, out, error = module.run_command(command)
        if code:
            module.fail_json(
                msg=f"{entry['path']} is left as it was: it would not do.",
                path=entry["path"], rc=code, stdout=out, stderr=error,
            )  # fmt: skip
    module.atomic_move(beside, entry["path"])


def have_file(module: AnsibleModule, entry: dict[str, Any]) -> Difference | None:
    """Have a file with this text."""
    path = Path(entry["path"])
    if entry["content"] is None:
        module.fail_json(msg=f"{path}: a file needs its content.", path=str(path))
    content = base64.b64decode(entry["content"])
    if path.is_dir():
        module.fail_json(msg=f"{path} should be a file and is a folder.", path=str(path))
    before = path.read_bytes() if path.exists() else None
    if before == content:
        return attributed(module, entry)
    if not module.check_mode:
        written(module, entry, content)
        attributed(module, entry)
    return headed(
        str(path), (before or b"").decode(errors="replace"), content.decode(errors="replace")
    )


HAVE = {"file": have_file, "directory": have_directory, "absent": have_absent}


def main() -> None:
    """Take one entry after the other."""
    module = AnsibleModule(
        argument_spec={
            "entries": {"type": "list", "elements": "dict", "required": True, "options": OPTIONS}
        },
        supports_check_mode=True,
    )
    changed_paths, differences = [], []
    # What is new belongs to nobody else until its mode is set. Afterwards it is as before, for this
    # process may do other tasks as well.
    before = os.umask(0o077)
    try:
        for entry in module.params["entries"]:
            difference = HAVE[entry["state"]](module, entry)
            if difference is not None:
                changed_paths.append(entry["path"])
                differences.append(difference)
    finally:
        os.umask(before)
    module.exit_json(changed=bool(changed_paths), changed_paths=changed_paths, diff=differences)


if __name__ == "__main__":
    main()
