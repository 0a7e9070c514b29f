"""Throwaway Debian servers on this machine, booted with systemd-nspawn.

Standard library only, so that any Python 3.11 or newer can run it:
`python3 -m millrace_sandbox up < spec.json`, with `roles/sandbox/files` on PYTHONPATH.
"""
