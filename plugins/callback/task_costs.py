"""Where the time of a run goes, by role and by task: what to look at before making it faster.

Beside the seconds that passed stands the processor time of this machine. A task whose two are alike
is slow here (templates, forks, packing modules); where they differ, the server, or a wait, has it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any, NamedTuple

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: task_costs
    type: aggregate
    short_description: time and processor time by role and task, at the end of a run
    description:
      - Prints two tables at the end of a run, by role and by task, the costliest first.
      - A task that runs several times, as in a role used twice, is one line with its count.
    requirements:
      - "enable it for a run: C(ANSIBLE_CALLBACKS_ENABLED=task_costs ./millrace site)"
    options:
      tasks:
        description: How many tasks are listed; 0 lists all.
        type: int
        default: 25
        env:
          - name: MILLRACE_TASK_COSTS
"""

OUTSIDE = "(reading the playbooks)"


class Cost(NamedTuple):
    """What something cost: runs, seconds passed, seconds of this machine's processors."""

    runs: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def plus(self, seconds: float, cpu_seconds: float) -> Cost:
        """Return the cost with another run."""
        return Cost(self.runs + 1, self.seconds + seconds, self.cpu_seconds + cpu_seconds)


def cpu_clock() -> float:
    """Return the processor seconds of this process and of its workers.

    A worker that has not been waited for yet is read from /proc: it would be charged to the task
    that comes next. The ssh that keeps a connection open is no child, and not counted.
    """
    seconds = 0.0
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            # Of itself and of its own children, each as a program and in the kernel: see proc(5).
            seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        seconds += used.ru_utime + used.ru_stime
    return seconds


def table(title: str, costs: dict[str, Cost], limit: int = 0) -> list[str]:
    """Return lines with the costliest first; all of them where `limit` is 0."""
    ranked = sorted(costs.items(), key=lambda pair: pair[1].seconds, reverse=True)
    lines = [f"{'seconds':>9}{'cpu':>8}{'runs':>6}  {title}"]
    for name, cost in ranked[: limit or None]:
        lines.append(f"{cost.seconds:9.2f}{cost.cpu_seconds:8.2f}{cost.runs:6d}  {name}")
    left = len(ranked) - limit
    if limit and left > 0:
        rest = [cost for _, cost in ranked[limit:]]
        seconds, cpu = sum(c.seconds for c in rest), sum(c.cpu_seconds for c in rest)
        lines.append(f"{seconds:9.2f}{cpu:8.2f}{sum(c.runs for c in rest):6d}  {left} more")
    return lines


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Charges to a task the time until the next one starts, also where it is skipped."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_costs"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Begin with what is no task."""
        super().__init__()
        self._tasks: dict[str, Cost] = {}
        self._roles: dict[str, Cost] = {}
        self._current = (OUTSIDE, OUTSIDE)
        self._began = (time.monotonic(), cpu_clock())

    def _turn(self, role: str, task: str) -> None:
        """Charge what passed to what ran until now."""
        now = (time.monotonic(), cpu_clock())
        passed = now[0] - self._began[0], now[1] - self._began[1]
        ran_role, ran_task = self._current
        self._roles[ran_role] = self._roles.get(ran_role, Cost()).plus(*passed)
        self._tasks[ran_task] = self._tasks.get(ran_task, Cost()).plus(*passed)
        self._current = (role, task)
        self._began = now

    def _begin(self, task: Any) -> None:
        name = task.get_name().strip()
        role = task._role.get_name() if task._role else "(no role)"
        self._turn(role, name)

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Note the task that starts."""
        self._begin(task)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Note the handler that starts."""
        self._begin(task)

    def v2_playbook_on_cleanup_task_start(self, task: Any) -> None:
        """Note the clean-up task that starts."""
        self._begin(task)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print the tables."""
        self._turn(OUTSIDE, OUTSIDE)
        total = Cost(
            sum(cost.runs for cost in self._tasks.values()),
            sum(cost.seconds for cost in self._tasks.values()),
            sum(cost.cpu_seconds for cost in self._tasks.values()),
        )
        lines = [
            *table("role", {"all of it": total, **self._roles}),
            "",
            *table("task", self._tasks, self.get_option("tasks")),
        ]
        self._display.display("\n" + "\n".join(lines))
