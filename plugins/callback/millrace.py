"""The output of a run: one line per task, with the time it took, and signs of life meanwhile.

Ansible's default prints a banner when a task starts and nothing until it ends, which for an engine
of several gigabytes is minutes of silence. This one shows the running task with its age, what a
polled job reports (any result with a `progress` key), and at the end where the time went. Failures
are printed by Ansible's own code, so nothing is hidden and `no_log` holds.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from typing import Any

from ansible import constants as C  # noqa: N812 (Ansible's own name for it)
from ansible.plugins.callback.default import CallbackModule as DefaultCallback

DOCUMENTATION = """
    name: millrace
    type: stdout
    short_description: one line per task, with durations and progress
    description:
      - Prints a line per task and host with its duration, and progress while a task runs.
    extends_documentation_fragment:
      - default_callback
      - result_format_callback
"""

QUIET_SECONDS = 15.0
"""Where output is no terminal: how long a task may run before a line says it still does."""
TICK_SECONDS = 0.5
OUR_REFUSALS = ("fail", "assert", "job_progress")
NO_PYTHON = re.compile(
    r"/python[\d.]*[\\']*:? (was )?(not found|No such file)"
    r"|No such file or directory: [\\']*\S*/python[\d.]*"
)
"""In the shell's words, in Ansible's, in Python's. A later task may lack another one."""
SLOWEST_SHOWN = 5
SLOW_SECONDS = 5.0


def clock(seconds: float) -> str:
    """Return a duration as people say it: `4s`, `1m32s`, `1h02m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def message_shown(result: Any) -> bool:
    """Tell whether a result is a message for people, which its own line shows."""
    return result.task.action.split(".")[-1] == "debug" and "msg" in result.result


class CallbackModule(DefaultCallback):  # type: ignore[misc]
    """Ansible's default callback with a line per task instead of a banner per task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "millrace"

    def __init__(self) -> None:
        """Start the clock; the ticker starts with the first task."""
        super().__init__()
        self._began = time.monotonic()
        self._task_label = ""
        self._task_began = self._began
        self._task_detail = ""
        self._running = False
        self._spoke = self._began
        self._slowest: list[tuple[float, str]] = []
        self._lock = threading.Lock()
        self._live = sys.stdout.isatty()
        self._ticker: threading.Thread | None = None

    # What is running ------------------------------------------------------------------------

    def _tick(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            with self._lock:
                if not self._running:
                    continue
                now = time.monotonic()
                age = now - self._task_began
                line = f"  {self._task_label} {clock(age)} {self._task_detail}".rstrip()
                if self._live:
                    width = self._display.columns
                    sys.stdout.write(f"\r\x1b[2K{line[: max(width - 1, 20)]}")
                    sys.stdout.flush()
                elif now - self._spoke >= QUIET_SECONDS:
                    self._spoke = now
                    sys.stdout.write(f"{line} …\n")
                    sys.stdout.flush()

    def _wipe(self) -> None:
        if self._live:
            sys.stdout.write("\r\x1b[2K")
            sys.stdout.flush()

    def _say(self, text: str, color: str | None = None) -> None:
        with self._lock:
            self._wipe()
            self._spoke = time.monotonic()
            self._display.display(text, color=color)

    def _settle(self) -> None:
        """Close the books on the task that ran until now."""
        if self._running:
            took = time.monotonic() - self._task_began
            self._slowest.append((took, self._task_label))
        with self._lock:
            self._running = False
            self._wipe()

    def _print_task_banner(self, task: Any) -> None:
        """Replace the default's banner: the ticker shows the task while it runs."""
        self._last_task_banner = task._uuid

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Note the task that starts."""
        self._begin(task)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Note the handler that starts."""
        self._begin(task)

    def v2_playbook_on_cleanup_task_start(self, task: Any) -> None:
        """Note the clean-up task that starts."""
        self._begin(task)

    def _begin(self, task: Any) -> None:
        self._settle()
        name = task.get_name().strip()
        with self._lock:
            self._task_label = name.replace(" : ", ": ", 1)
            self._task_began = time.monotonic()
            self._task_detail = ""
            self._spoke = self._task_began
            self._running = True
        self._last_task_banner = task._uuid
        if self._ticker is None:
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Print the play's name with the time since the start."""
        self._settle()
        self._play = play
        name = play.get_name().strip() or "unnamed"
        mode = " (check mode: nothing is changed)" if play.check_mode else ""
        age = clock(time.monotonic() - self._began)
        self._say(f"\n== {name}{mode} [{age}]", color=C.COLOR_HIGHLIGHT)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Say nothing: an included file is not news."""

    # Results --------------------------------------------------------------------------------

    def _line(self, result: Any, state: str, color: str) -> None:
        took = time.monotonic() - self._task_began
        host = self.host_label(result)
        label = self._task_label
        tail = f" ({clock(took)})" if took >= 1 else ""
        message = ""
        if message_shown(result):
            said = result.result["msg"]
            lines = said if isinstance(said, list) else str(said).splitlines()
            message = "".join(f"\n      {line}" for line in lines)
        self._say(f"  {state:<8}{label} [{host}]{tail}{message}", color=color)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Print one line, and the diff or the details where they were asked for."""
        if result.task.action in C._ACTION_ALL_INCLUDES:
            return
        if result.task.action == "ansible.builtin.validate_argument_spec":
            return  # one for each role; only a failure is news
        changed = result.result.get("changed", False)
        self._handle_warnings_and_exception(result)
        # As items are: the task's own line follows.
        for path in result.result.get("changed_paths", []):
            self._say(f"          changed {path}", color=C.COLOR_CHANGED)
        if changed:
            self._line(result, "changed", C.COLOR_CHANGED)
        elif self.get_option("display_ok_hosts"):
            self._line(result, "ok", C.COLOR_OK)
        if self._run_is_verbose(result) and not message_shown(result):
            with self._lock:
                self._clean_results(result.result, result.task.action)
                self._display.display(self._dump_results(result.result))

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Say nothing of a skipped task unless asked to (-v)."""
        if self._display.verbosity:
            self._line(result, "skipped", C.COLOR_SKIP)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Name the task, then let Ansible print the failure."""
        self._settle()
        if not ignore_errors:
            host = self.host_label(result)
            self._say(f"  FAILED  {self._task_label} [{host}]", color=C.COLOR_ERROR)
        message = result.result.get("msg")
        if result.task.action.split(".")[-1] in OUR_REFUSALS and message:
            # Our own refusals are written for people: print them as they are.
            lines = message if isinstance(message, list) else str(message).splitlines()
            for line in lines:
                self._say(f"          {line}", color=C.COLOR_ERROR)
            return
        super().v2_runner_on_failed(result, ignore_errors)
        if result.task.action.split(".")[-1] == "gather_facts":
            self._help_with_python(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Name the task, then let Ansible print why the host is out of reach."""
        self._settle()
        super().v2_runner_on_unreachable(result)
        self._help_with_python(result)

    def _help_with_python(self, result: Any) -> None:
        if NO_PYTHON.search(str(result.result)):
            self._say(
                f"          {self.host_label(result)} has no Python, by which Ansible works. "
                "As root there, once: apt-get update && apt-get install -y python3",
                color=C.COLOR_ERROR,
            )

    def v2_runner_retry(self, result: Any) -> None:
        """Show what a polled job reports of itself."""
        told = result.result.get("json")
        progress = (
            result.result.get("progress")
            or (told.get("reason") if told else None)
            or result.result.get("stdout")
        )
        with self._lock:
            self._task_detail = str(progress) if progress else "waiting"

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Print changed items only: the task's own line follows."""
        if result.result.get("changed", False):
            label = self._get_item_label(result.result)
            self._say(f"          changed {label}", color=C.COLOR_CHANGED)
        self._handle_warnings_and_exception(result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        """Say nothing of a skipped item."""

    def v2_on_file_diff(self, result: Any) -> None:
        """Print diffs clear of the live line."""
        with self._lock:
            self._wipe()
        super().v2_on_file_diff(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print Ansible's recap, then where the time went."""
        self._settle()
        super().v2_playbook_on_stats(stats)
        total = time.monotonic() - self._began
        slow = sorted(self._slowest, reverse=True)[:SLOWEST_SHOWN]
        parts = [f"{label} {clock(took)}" for took, label in slow if took >= SLOW_SECONDS]
        where = f"; slowest: {', '.join(parts)}" if parts else ""
        self._say(f"took {clock(total)}{where}")
