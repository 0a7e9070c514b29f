"""Where secrets go in the playbooks: what may show one is silenced, and none is an argument.

From `lookup('password')`, the vault and options marked `no_log` through wiring, roles' variables
and templates to tasks. What a run really prints is looked at by tests/host/test_secrets.py; here
every task is, also those that no test server runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from unit_kit import ROOT, declared

INVENTORY = ROOT / "inventory/group_vars/millrace"
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
SOURCE = re.compile(r"lookup\(\s*'ansible\.builtin\.password'|\bvault_")
NAME = re.compile(r"\b[a-z_][a-z0-9_]*\b")
# What tells no more of a secret than that it is there, or what is wrong with it; the filter's own
# tests see to that.
HARMLESS = re.compile(
    r"[\w.]+ *\| *(length|keys|count)\b|\| *preflight_problems\(.*?\)"
    r"|for key in __streamcheck_keys"  # their names: the unit loads each as a credential
)
NAMES_OF_CLIENTS = {"__verify_client"}
# What a task neither runs nor shows. Variables count where they are used.
NO_VALUES = {"when", "register", "changed_when", "failed_when", "notify", "until", "vars"}
# Not run where the setting holds the key's text: it has the path, which a failure should tell.
ONLY_A_PATH = {"files | Copy the certificate on the server"}
PRIVATE_MODES = {"0600", "0400", "0640", "0440", "u=rw,go="}


def load(path: Path) -> Any:
    """Return a YAML file's content."""
    return yaml.safe_load(path.read_text())


def mentions(value: Any, names: set[str]) -> set[str]:
    """Return which of `names` a value's templates use."""
    text = HARMLESS.sub("", str(value))
    expressions = re.findall(r"\{\{.*?\}\}|\{%.*?%\}", text, re.S)
    return {name for part in expressions for name in NAME.findall(part)} & names


def options(role: Path) -> dict[str, Any]:
    """Return the options of a role's argument specification."""
    path = role / "meta/argument_specs.yml"
    spec = load(path) if path.exists() else {}
    return dict(spec.get("argument_specs", {}).get("main", {}).get("options") or {})


def definitions() -> Iterator[tuple[str, Any]]:
    """Yield each variable of inventory and roles with its value."""
    files = [INVENTORY / "settings.yml", INVENTORY / "wiring.yml"]
    files += [f for role in ROLES for kind in ("vars", "defaults") for f in role.glob(f"{kind}/*")]
    for file in files:
        yield from (load(file) or {}).items()
    for _, task in every_task():
        yield from task.get("vars", {}).items()
        yield from (task.get("ansible.builtin.set_fact") or {}).items()


def is_task(value: dict[str, Any]) -> bool:
    """Whether a dictionary is a task and no block, nor a module's arguments."""
    return any("." in key or key in OWN_MODULES for key in value) and "block" not in value


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every task in what a file of tasks holds."""
    if isinstance(value, dict):
        if is_task(value):
            yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


OWN_MODULES = {path.stem for path in (ROOT / "plugins/modules").glob("*.py")}


def every_task() -> list[tuple[Path, dict[str, Any]]]:
    """Return each task with its file."""
    folders = [role / kind for role in ROLES for kind in ("tasks", "handlers")]
    files = [f for folder in folders for f in sorted(folder.glob("*.yml"))]
    files += sorted((ROOT / "playbooks").glob("*.yml"))
    return [(file, task) for file in files for task in walk(load(file))]


def secret_names() -> set[str]:
    """Return every variable that holds a secret, directly or through others."""
    known = {n for role in ROLES for n, o in options(role).items() if o.get("no_log")}
    defined = list(definitions())
    known |= {name for name, value in defined if SOURCE.search(str(value))}
    while more := {n for n, value in defined if mentions(value, known)} - known - NAMES_OF_CLIENTS:
        known |= more
    return known


SECRETS = secret_names()


def template_of(file: Path, task: dict[str, Any]) -> str:
    """Return the text of a task's templates, of every one it may mean; empty for other tasks."""
    placed = task.get("placed_files", {}).get("entries", [])
    named = [entry["template"] for entry in placed if "template" in entry]
    if isinstance(arguments := task.get("ansible.builtin.template"), dict):
        named.append(arguments["src"])
    return "".join(template_text(file, str(name)) for name in named)


def template_text(file: Path, name: str) -> str:
    """Return the text of every template that a name in a role's tasks may mean."""
    pattern = re.sub(r"\{\{.*?\}\}", "*", name)
    pattern = pattern.rsplit("*/", 1)[-1] if pattern.startswith("*/") else pattern
    folders = (file.parents[1] / "templates", ROOT, ROOT / "templates")
    if pattern == "*.j2":  # A whole path that a variable holds.
        folders, pattern = folders[:1], "**/*.j2"
    found = [p for folder in folders for p in folder.glob(pattern) if p.is_file()]
    assert found, f"{file}: no template {pattern}"
    return "".join(path.read_text() for path in found)


def masked(module: str, option: str) -> bool:
    """Whether one of our modules declares that Ansible never shows an option of it."""
    return declared(module).get(option, {}).get("no_log") is True


def shown(file: Path, task: dict[str, Any]) -> set[str]:
    """Return the secrets that a task would show at -vvv or --diff, were it not silenced."""
    found = mentions(template_of(file, task), SECRETS)
    for key, value in task.items():
        if key in NO_VALUES:
            continue
        if key in OWN_MODULES and isinstance(value, dict):
            value = {o: text for o, text in value.items() if not masked(key, o)}
        found |= mentions(value, SECRETS)
    return found


def told(file: Path, task: dict[str, Any]) -> str:
    """Return where a task stands."""
    return f"{file.relative_to(ROOT)}: {task.get('name')}"


def test_the_secrets_are_known() -> None:
    assert {"millrace_engine_key", "vllm_engine_key", "backend_client_keys", "__streamcheck_keys",
            "vllm_hub_token", "millrace_session_secret"} <= SECRETS  # fmt: skip
    assert not {"millrace_secrets_dir", "vllm_model", "millrace_plan"} & SECRETS


def test_what_would_show_a_secret_is_silenced() -> None:
    loud = [
        f"{told(file, task)} shows {sorted(names)}"
        for file, task in every_task()
        if not task.get("no_log")
        and task.get("name") not in ONLY_A_PATH
        and (names := shown(file, task))
    ]
    assert loud == []


def test_no_secret_is_an_argument_or_in_an_environment() -> None:
    """Silenced or not: whoever lists the processes would see it."""
    wrong = []
    for file, task in every_task():
        for key in ("ansible.builtin.command", "ansible.builtin.shell", "ansible.builtin.script",
                    "ansible.builtin.raw", "environment", "loop_control", "name"):  # fmt: skip
            value = task.get(key)
            if isinstance(value, dict):
                value = {k: v for k, v in value.items() if k != "stdin"}
            if names := mentions(value, SECRETS):
                wrong.append(f"{told(file, task)}: {sorted(names)} in {key}")
    assert wrong == []


def test_a_private_file_that_is_copied_is_not_shown_by_a_diff() -> None:
    """Its content stands in no variable, so that nothing but its mode tells what it is."""
    loud = []
    for file, task in every_task():
        copied = [
            *task.get("placed_files", {}).get("entries", []),
            task.get("ansible.builtin.copy"),
        ]
        private = any(
            isinstance(arguments, dict)
            and "src" in arguments
            and arguments.get("mode") in PRIVATE_MODES
            for arguments in copied
        )
        if private and not task.get("no_log") and task.get("diff") is not False:
            loud.append(told(file, task))
    assert loud == []


def test_every_role_that_gets_a_secret_says_so() -> None:
    """An option that is wired from a secret is marked, so that Ansible masks it."""
    wired = load(INVENTORY / "wiring.yml")
    for role in ROLES:
        for name, option in options(role).items():
            if name in wired and name in SECRETS:
                assert option.get("no_log") is True, name


def test_the_example_of_a_vault_names_all_that_a_vault_may_hold() -> None:
    example = (ROOT / "inventory/vault.example.yml").read_text()
    wiring = (INVENTORY / "wiring.yml").read_text() + (INVENTORY / "settings.yml").read_text()
    for name in set(re.findall(r"\bvault_[a-z_]+[a-z]\b", wiring)):
        assert name in example, name


def test_ansible_keeps_no_facts_and_no_log() -> None:
    """What it keeps on the controller would hold what it was told."""
    settings = (ROOT / "ansible.cfg").read_text()
    for option in ("fact_caching", "log_path", "no_target_syslog", "display_args_to_stdout",
                   "keep_remote_files", "pipelining = False"):  # fmt: skip
        assert option not in settings, option
