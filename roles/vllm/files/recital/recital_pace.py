"""Lets the recital model speak at a large model's pace.

The tiny model makes 600 to 800 tokens a second, on a core that the rest of the
chain needs: an answer is over in a second, before anyone has seen it stream or a
test has left it half-way. This makes the engine wait between its steps without
using the processor, as it would for a GPU. It changes no token.

vLLM loads it by its own option for such plugins, from a folder on PYTHONPATH:

    logits-processors: ["recital_pace:Pace"]    in the engine's --config file
    RECITAL_STEP_MILLISECONDS=8                 in its environment; 0 does not wait
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor import LogitsProcessor

if TYPE_CHECKING:
    import torch

DEFAULT_MILLISECONDS = 8.0  # 125 tokens a second for each stream


class Pace(LogitsProcessor):  # type: ignore[misc]  # vLLM is not there when types are checked
    """Holds every step of the engine until the one before it is old enough."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        milliseconds = float(os.environ.get("RECITAL_STEP_MILLISECONDS", DEFAULT_MILLISECONDS))
        self.step_seconds = milliseconds / 1000
        self.next_step = 0.0

    def is_argmax_invariant(self) -> bool:
        """Say that no token is chosen differently."""
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Leave the logits as they are."""
        return logits

    def update_state(self, batch_update: Any) -> None:
        """Wait; vLLM calls this once before every step."""
        wait = self.next_step - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        self.next_step = time.monotonic() + self.step_seconds
