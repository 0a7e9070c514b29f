"""The law of the house that linters do not know: defaults, specifications, names, READMEs."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit_kit import ROOT

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))

# What a role leaves for others under a name that is the project's: the plan is everybody's.
SHARED = {"plan": {"millrace_plan"}}
README_LINES = 40

# Ansible's own: how a task comes in, and which Python it runs in.
CONNECTION = {
    "ansible_connection",
    "ansible_ssh_args",
    "ansible_ssh_timeout",
    "ansible_python_interpreter",
}

# Handlers of another role of the same play, which is where Ansible looks for them.
NOTIFIED_ELSEWHERE = {"tls": "nginx", "origin_pulls": "nginx"}


@functools.cache
def load(path: Path) -> Any:
    """Return a YAML file's content, or an empty dictionary. Nobody may change what it returns."""
    return (yaml.safe_load(path.read_text()) if path.exists() else None) or {}


def options(role: str) -> dict[str, Any]:
    """Return the options of a role's argument specification."""
    spec = load(ROOT / f"roles/{role}/meta/argument_specs.yml")
    return dict(spec.get("argument_specs", {}).get("main", {}).get("options") or {})


def defaults(role: str) -> dict[str, Any]:
    """Return a role's defaults."""
    return dict(load(ROOT / f"roles/{role}/defaults/main.yml"))


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every dictionary in a file of tasks: tasks, blocks and what stands in them."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def tasks(role: str, *folders: str) -> list[dict[str, Any]]:
    """Return every dictionary in a role's task and handler files."""
    files = [f for name in folders for f in sorted((ROOT / f"roles/{role}/{name}").glob("*.yml"))]
    return [found for file in files for found in walk(load(file))]


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_specification_say_the_same(role: str) -> None:
    given = {name: o["default"] for name, o in options(role).items() if "default" in o}
    assert given == defaults(role)
    for name, option in options(role).items():
        required = option.get("required", False)
        assert required != ("default" in option), f"{name}: either a default or required"


@pytest.mark.parametrize("role", ROLES)
def test_every_option_is_described_and_typed(role: str) -> None:
    for name, option in options(role).items():
        assert str(option.get("description", "")).strip().endswith((".", ")")), name
        assert option.get("type"), f"{name}: no type"
    spec = load(ROOT / f"roles/{role}/meta/argument_specs.yml")
    assert spec["argument_specs"]["main"]["short_description"]


@pytest.mark.parametrize("role", ROLES)
def test_every_option_that_holds_a_secret_is_marked(role: str) -> None:
    for name, option in options(role).items():
        if re.search(r"(_key|_keys|_token|_password|_secret)$", name):
            assert option.get("no_log") is True, name


@pytest.mark.parametrize("role", ROLES)
def test_every_default_has_a_comment_above_it(role: str) -> None:
    """Neighbours may share one: a block of settings without a blank line stands under it."""
    file = ROOT / f"roles/{role}/defaults/main.yml"
    if not file.exists():
        assert not [n for n, o in options(role).items() if "default" in o]
        return
    told = False
    for line in file.read_text().splitlines():
        if line.startswith("#"):
            told = True
        elif not line.strip() or line == "---":
            told = False
        elif re.match(r"\w+:", line):
            assert told, f"no comment above {line}"


@pytest.mark.parametrize("role", ROLES)
def test_no_variable_leaves_its_roles_prefix(role: str) -> None:
    allowed = SHARED.get(role, set())

    def own(name: str) -> bool:
        return name.startswith((f"{role}_", f"__{role}_")) or name in allowed

    assert not [n for n in {**defaults(role), **options(role)} if not n.startswith(f"{role}_")]
    assert not [n for n in load(ROOT / f"roles/{role}/vars/main.yml") if not own(n)]
    for found in tasks(role, "tasks", "handlers"):
        names = [found["register"]] if isinstance(found.get("register"), str) else []
        facts = found.get("ansible.builtin.set_fact")
        names += [n for n in facts if n != "cacheable"] if isinstance(facts, dict) else []
        given = found.get("vars") if isinstance(found.get("vars"), dict) else {}
        called = found.get("ansible.builtin.import_role") or found.get(
            "ansible.builtin.include_role"
        )
        other = options(called["name"]) if isinstance(called, dict) else {}
        names += [n for n in given if n not in other and n not in CONNECTION]
        assert not [n for n in names if not own(n)], f"in {found.get('name')}"
        loop_variable = (found.get("loop_control") or {}).get("loop_var", "item")
        assert loop_variable == "item" or own(loop_variable)


@pytest.mark.parametrize("role", ROLES)
def test_every_readme_is_there_and_short(role: str) -> None:
    readme = ROOT / f"roles/{role}/README.md"
    assert readme.exists(), f"roles/{role} has no README.md"
    lines = readme.read_text().splitlines()
    assert lines[0] == f"# {role}"
    assert 3 <= len(lines) <= README_LINES


@pytest.mark.parametrize("role", ROLES)
def test_every_notified_handler_exists(role: str) -> None:
    known: set[str] = set()
    for owner in (role, NOTIFIED_ELSEWHERE.get(role, role)):
        for handler in tasks(owner, "handlers"):
            known |= {handler.get("name", ""), handler.get("listen", "")}
    for found in tasks(role, "tasks"):
        notified = found.get("notify") or []
        for name in [notified] if isinstance(notified, str) else notified:
            assert name in known, f"{found.get('name')} notifies {name}, which nobody handles"


@pytest.mark.parametrize("role", ROLES)
def test_systemd_is_told_of_every_unit_that_is_written(role: str) -> None:
    """Otherwise it goes on with the old one until something else reloads it."""
    told = {
        handler["name"]
        for handler in tasks(role, "handlers")
        if handler.get("ansible.builtin.systemd_service", {}).get("daemon_reload")
    }
    for found in tasks(role, "tasks"):
        written = found.get("ansible.builtin.template") or found.get("ansible.builtin.copy")
        placed = found.get("placed_files", {}).get("entries", [])
        destinations = [entry["path"] for entry in placed if entry.get("state") != "absent"]
        if written:
            destinations += [str(written.get("dest", "")) + str(found.get("loop", ""))]
        if any("/etc/systemd/system/" in destination for destination in destinations):
            assert found.get("notify") in told, found["name"]


@pytest.mark.parametrize("role", ROLES)
def test_every_file_of_tasks_is_used(role: str) -> None:
    text = "".join(f.read_text() for f in sorted((ROOT / "roles").rglob("tasks/*.yml")))
    sources = [o.removesuffix(".yml").strip() for o in re.findall(r"[\w{}. ]+\.yml", text)]
    prefixes = tuple(s.split("{{")[0] for s in sources if "{{" in s and not s.startswith("{{"))
    plays = "".join(playbook.read_text() for playbook in PLAYBOOKS)
    named = {"main", *sources, *re.findall(r"tasks_from: (\w+)", plays)}
    for source in sources:
        if option := options(role).get(source.strip("{ }")):
            named |= set(option["choices"])
    for file in (ROOT / f"roles/{role}/tasks").glob("*.yml"):
        assert file.stem in named or file.stem.startswith(prefixes), file.stem


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: str(path.stem))
def test_every_role_of_a_playbook_exists_and_has_its_tag(playbook: Path) -> None:
    for play in load(playbook):
        for entry in play.get("roles", []):
            assert entry["role"] in ROLES
            assert set(entry["tags"]) <= {entry["role"], "always"}, "a tag is its role's name"
        for task in [*play.get("pre_tasks", []), *play.get("tasks", [])]:
            for verb in ("ansible.builtin.import_role", "ansible.builtin.include_role"):
                if named := task.get(verb):
                    assert named["name"] in ROLES
                    assert set(task["tags"]) <= {named["name"], "always"}
                    applied = named.get("apply", {}).get("tags", task["tags"])
                    assert applied == task["tags"], "what is included has the tag of its include"


def test_arguments_of_roles_are_checked_before_any_task_of_theirs() -> None:
    """They are not checked role by role, which costs a task for each."""
    checked = {"name": "preflight", "tasks_from": "decide", "apply": {"tags": ["always"]}}
    for book in load(ROOT / "site.yml"):
        for play in load(ROOT / book["ansible.builtin.import_playbook"]):
            first, *_ = play["tasks"]
            if first["ansible.builtin.import_role"]["name"] == "preflight":
                continue
            _, decides, *_ = play["pre_tasks"]
            assert decides["ansible.builtin.include_role"] == checked, play["name"]
            assert decides["when"] == "millrace_plan is not defined"


def test_a_module_can_go_on_in_another_python() -> None:
    """Where it runs in ours, apt's has to: over Mitogen it cannot."""
    for playbook in PLAYBOOKS:
        for play in load(playbook):
            if "ansible_python_interpreter" in play.get("vars", {}):
                assert play["strategy"] == "ansible.builtin.linear", playbook.name


def test_site_imports_every_playbook_that_changes_a_server() -> None:
    imported = [ROOT / play["ansible.builtin.import_playbook"] for play in load(ROOT / "site.yml")]
    assert len(imported) == len(set(imported))
    alone = ("sandbox", "plan", "key", "cloudflare")
    assert set(imported) == {p for p in PLAYBOOKS if p.stem not in alone}


def test_preflight_knows_every_role_of_the_product() -> None:
    """A role it does not know would have its settings taken for typing mistakes."""
    known = load(ROOT / "roles/preflight/vars/main.yml")["__preflight_roles"]
    assert set(known) == set(ROLES) - {"sandbox"}


def test_the_wiring_is_known_to_some_role_or_to_preflight() -> None:
    known = {name for role in ROLES for name in options(role)}
    known |= set(load(ROOT / "roles/preflight/vars/main.yml")["__preflight_wiring"])
    folder = ROOT / "inventory/group_vars/millrace"
    given = {**load(folder / "settings.yml"), **load(folder / "wiring.yml")}
    assert not set(given) - known


def test_an_owners_settings_start_as_the_defaults() -> None:
    """What settings.yml shows to an owner is what happens without it."""
    every = {name: value for role in ROLES for name, value in defaults(role).items()}
    shown = load(ROOT / "inventory/group_vars/millrace/settings.yml")
    assert {n: v for n, v in shown.items() if n in every and every[n] != v} == {}
