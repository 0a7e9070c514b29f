"""Decide: hardware and settings in, one plan out. Pure, for the filter and for the CLI."""
