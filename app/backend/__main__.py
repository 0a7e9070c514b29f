"""Run the backend: `python -m backend --config FILE [--fd 3 | --host HOST --port PORT]`.

With `--private PATH` the process listens there as well, for itself alone: the other of two
instances reaches by it the streams that live here.

`--check` only reads the settings file and says what is wrong with it. Exit status 78 (EX_CONFIG)
means that a file is missing or wrong: starting again will not help.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
from pathlib import Path

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from backend.application import build
from backend.logs import log_config
from backend.server import Server, Workers
from backend.settings import CONFIG_VARIABLE, ConfigError, Settings, load_settings

EX_CONFIG = 78
_BACKLOG = 2048


def main(arguments: list[str] | None = None) -> int:
    """Read the settings, listen and serve; return the exit status."""
    options = _parser().parse_args(arguments)
    if options.config is not None:
        # Worker processes are started anew and find the file by this.
        os.environ[CONFIG_VARIABLE] = str(options.config.absolute())
    try:
        settings = load_settings()
        if options.check:
            return 0
        # Once here, before any worker: a bad keys file or credential is one plain message now
        # rather than a traceback from each worker.
        build(settings)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    config = server_config(settings)
    try:
        sockets = [_inherited(options.fd) if options.fd is not None else _bind(options)]
        if options.private is not None:
            sockets.append(_bind_private(options.private))
    except OSError as error:
        print(f"cannot listen: {error}", file=sys.stderr)
        return 1
    if config.workers > 1:
        supervisor = Workers(config, sockets=sockets)
        supervisor.run()
        failed = any(worker.exitcode == STARTUP_FAILURE for worker in supervisor.processes)
        return 1 if failed else 0
    server = Server(config)
    server.run(sockets=sockets)
    return 0 if server.started else 1


def server_config(settings: Settings) -> uvicorn.Config:
    """Return uvicorn's side of the settings."""
    return uvicorn.Config(
        "backend.asgi:app",
        interface="asgi3",
        lifespan="on",
        loop="uvloop",
        http="httptools",
        ws="none",
        workers=settings.workers,
        backlog=_BACKLOG,
        timeout_keep_alive=settings.keepalive_seconds,
        timeout_graceful_shutdown=settings.drain_seconds,
        # Five seconds is little for a machine that is loading a model at the same time.
        timeout_worker_healthcheck=30,
        access_log=False,
        server_header=False,
        # It would believe anybody on this machine; see doors.address_of.
        proxy_headers=False,
        log_config=log_config(),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backend", description=__doc__)
    parser.add_argument("--config", type=Path, help=f"settings file (or {CONFIG_VARIABLE})")
    parser.add_argument("--check", action="store_true", help="check the settings and stop")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--fd", type=int, help="a listening socket, from systemd: 3")
    where.add_argument("--host", default="127.0.0.1", help="address, for development")
    parser.add_argument("--port", type=int, default=8080, help="port, for development")
    parser.add_argument("--private", type=Path, help="a Unix socket of this process's own")
    return parser


def _inherited(fd: int) -> socket.socket:
    """Take over a listening socket, with its real family.

    uvicorn's own `fd` calls every socket a Unix one, and asyncio then leaves Nagle's algorithm
    on for the connections, which can hold small events back.
    """
    return socket.socket(fileno=fd)


def _bind(options: argparse.Namespace) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((options.host, options.port))
    return listener


def _bind_private(path: Path) -> socket.socket:
    """Listen at `path`, for processes of our own user alone; a socket left there is replaced."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(_BACKLOG)
    return listener


if __name__ == "__main__":
    sys.exit(main())
