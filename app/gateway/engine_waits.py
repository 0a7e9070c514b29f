"""How vLLM's processes wait for one another where the model is computed on the processor.

vLLM loads this in each of its processes, as a plugin: roles/vllm/files/millrace_engine.dist-info
names it.

For a second after each message they look into their shared memory again and again, and yield the
processor in between (0.32, shm_broadcast.py). Beside cards that costs a core of many. Here it is a
core that the model itself needs, and Linux 6.18 lets others starve beside a process that yields
without end: on two cores LiteLLM came to nothing for 0.34 s at a time, and passed every second
answer on in one piece, 23 of 42. So they sleep for a moment between two looks: then none of 42, and
256 tokens at full speed take 0.54 s instead of 0.48 (docs/measurements.md).

To wait for vLLM's own notice instead, which would cost nothing at all, loses some: the engine stood
still (tried by `busy_loop_s=0`).
"""

from __future__ import annotations

import time

SECONDS = 50e-6
"""The kernel adds as much again: its timers are that coarse for an ordinary process."""


def install() -> None:
    """Let them sleep, if this engine runs on the processor. Raises RuntimeError: another vLLM."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.distributed.device_communicators import shm_broadcast

    if not callable(getattr(shm_broadcast, "sched_yield", None)):
        raise RuntimeError(
            "vLLM's shm_broadcast has no sched_yield: this release waits in another way than "
            "gateway.engine_waits knows; look at it anew, or take the plugin away"
        )
    shm_broadcast.sched_yield = rest


def rest() -> None:
    """Give the processor to who needs it."""
    time.sleep(SECONDS)
