"""The controller's half of placed_files: makes texts of templates and files, for one visit."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from ansible import constants as C  # noqa: N812 (Ansible's own name for it)
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

SOURCES = ("template", "src", "content")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Finds templates and files as Ansible's own actions do."""

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Hand all entries over at once."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        given = self._task.args.get("entries")
        if not isinstance(given, list):
            raise AnsibleActionFail("placed_files needs a list of entries")
        entries = [self._filled(entry, task_vars or {}) for entry in given]
        result.update(
            self._execute_module(
                module_name="placed_files", module_args={"entries": entries}, task_vars=task_vars
            )
        )
        return result

    def _filled(self, entry: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Return an entry with its text, where it is a file."""
        sources = [source for source in SOURCES if entry.get(source) is not None]
        is_file = entry.get("state", "file") == "file"
        if len(sources) != is_file:
            raise AnsibleActionFail(
                f"{entry.get('path')}: a file has exactly one of {', '.join(SOURCES)}; "
                "a folder has none"
            )
        if not is_file:
            return entry
        (source,) = sources
        text = {"template": self._rendered, "src": self._read, "content": self._said}[source](
            entry[source], task_vars
        )
        kept = {key: value for key, value in entry.items() if key not in SOURCES}
        return {**kept, "content": base64.b64encode(text.encode()).decode()}

    def _said(self, text: Any, task_vars: dict[str, Any]) -> str:
        if not isinstance(text, str):
            raise AnsibleActionFail("content is no text: pass data through to_json or to_nice_json")
        return text

    def _read(self, name: str, task_vars: dict[str, Any]) -> str:
        return Path(self._find_needle("files", name)).read_text()

    def _rendered(self, name: str, task_vars: dict[str, Any]) -> str:
        """Render as ansible.builtin.template does, its search path included."""
        source = self._find_needle("templates", name)
        folders = [*task_vars.get("ansible_search_path", []), str(Path(source).parent)]
        search = [path for folder in folders for path in (f"{folder}/templates", folder)]
        variables = {
            "ansible_managed": C.config.get_config_value("DEFAULT_MANAGED_STR"),
            **task_vars,
        }
        templar = self._templar.copy_with_new_env(searchpath=search, available_variables=variables)
        text = trust_as_template(self._loader.get_text_file_contents(source))
        rendered = templar.template(text, escape_backslashes=False, overrides={"trim_blocks": True})
        return "" if rendered is None else str(rendered)
