"""What vLLM loads of ours, as one layer: `--middleware gateway.engine_layers.EngineLayers`.

vLLM takes several, by naming the flag several times. From its settings file it does not (0.32): a
list there becomes one flag with all its values, of which the parser knows only the first.
"""

from __future__ import annotations

from gateway.access_log import AccessLog, App
from gateway.handed_off import HandedOff


class EngineLayers(HandedOff):
    """The access log, and for answers that pass the backend by what tells of them."""

    def __init__(self, app: App) -> None:
        """Wrap `app`."""
        super().__init__(AccessLog(app))
