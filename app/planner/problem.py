"""What stands in the way of a plan."""

from __future__ import annotations


class PlanError(Exception):
    """Nothing can be planned: its text says why and how to mend it."""


class TooLarge(PlanError):  # noqa: N818
    """A model does not fit into the memory that there is."""
