"""Ansible's `linear`, over Mitogen's one lasting Python on each server where Mitogen is installed.

Ansible itself starts a Python on the server for each task; Mitogen starts one for the whole run
(docs/speed.md says what that is worth). `./millrace` installs it. With an Ansible of your own that
lacks it, a run does the same things in the same order, and takes longer.
"""

from __future__ import annotations

import functools
import importlib.machinery
import types

from ansible.plugins.strategy.linear import StrategyModule as Linear

DOCUMENTATION = """
    name: mitogen_or_linear
    short_description: linear, over Mitogen where it is installed
    description:
      - Executes tasks in lockstep as C(linear) does.
      - A server's Python is started once a run where the package C(mitogen) is installed.
"""

try:
    import ansible_mitogen.affinity
    import ansible_mitogen.loaders
    import ansible_mitogen.module_finder
    import ansible_mitogen.strategy
    import mitogen.master
    import mitogen.minify
except ImportError:

    class StrategyModule(Linear):
        """Ansible's own."""

else:
    # Mitogen's own policy binds each process to a core, and with it what a task starts on this
    # machine: a server of the sandbox would live on one core for ever.
    ansible_mitogen.affinity.policy = ansible_mitogen.affinity.Policy()

    def kept_code(source: bytes, path: str, mode: str) -> types.CodeType:
        """Return the code of the module at `path`, as Python keeps it in __pycache__."""
        try:
            code = importlib.machinery.SourceFileLoader("", path).get_code("")
        except (OSError, ImportError, SyntaxError, ValueError):
            code = None
        return code or compile(source, path, mode)

    def whole(source: str | bytes) -> str:
        """Return a source as it is, for a server to read."""
        return source if isinstance(source, str) else source.decode()

    # What is sent to a server is compiled to be searched for imports, and rid of its comments, in
    # each run anew: a second and a half of this machine's, for 40 KB less on the line.
    mitogen.master.compile = kept_code
    mitogen.minify.minimize_source = whole

    # Whatever a module imports is compiled to be searched for imports: for each module anew nearly
    # all of Ansible's library. A name in that module stands before the built-in of the same name.
    ansible_mitogen.module_finder.compile = functools.cache(compile)

    # By the loader, as Mitogen's own strategies: so that there is one such class and no second.
    Base = ansible_mitogen.loaders.strategy_loader.get("linear", class_only=True)

    class StrategyModule(ansible_mitogen.strategy.StrategyMixin, Base):  # type: ignore[misc, no-redef]
        """Mitogen's."""
