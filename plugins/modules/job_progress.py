#!/usr/bin/python
"""Say how far a job in the background is."""

from __future__ import annotations

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: job_progress
short_description: Say how far an asynchronous job is, from a file that the job keeps
description:
  - Like C(async_status), with a C(progress) line that the C(millrace) callback shows.
  - Read-only. When the job has ended, its own result is returned, its failure included.
options:
  job:
    description: The job's identifier, C(ansible_job_id) of the task that started it.
    type: str
    required: true
  folder:
    description: Where Ansible keeps what becomes of its jobs.
    type: path
    default: ~/.ansible_async
  file:
    description: File whose last line says how far the job is.
    type: path
    required: true
author: Millrace
"""

LAST_WORDS = 15
"""Lines of the file that are shown when the job failed."""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "job": {"type": "str", "required": True},
            "folder": {"type": "path", "default": "~/.ansible_async"},
            "file": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    # Not as the first task names it: Mitogen does not.
    results = Path(module.params["folder"], module.params["job"])
    try:
        job = json.loads(results.read_text())
    except FileNotFoundError:
        module.fail_json(msg="the job's results file is gone; run the playbook again")
    except ValueError:
        job = {"started": True}  # caught while it is being written
    # Ansible's wrapper marks a running job with `started`; a module's own result has no such key.
    finished = "started" not in job or bool(job.get("finished"))
    try:
        lines = Path(module.params["file"]).read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if not finished:
        module.exit_json(changed=False, finished=False, progress=lines[-1] if lines else "")
    results.unlink(missing_ok=True)
    if job.get("failed"):
        # A job that is a command says why in its file; a module says it in its result.
        own = str(job.get("msg", "the job failed without a word"))
        said = lines[-LAST_WORDS:] if "cmd" in job else [own]
        module.fail_json(**{**job, "msg": "\n".join(said), "finished": True})
    module.exit_json(**{**job, "finished": True})


if __name__ == "__main__":
    main()
