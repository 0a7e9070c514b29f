"""Run the edge: `python -m edge_proxy --listen ADDRESS:PORT --origin HOST:PORT …`.

Prints `ready` when it listens, and ends with its parent's pipe: close its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import ssl
import sys

import h2.errors
import hypercorn.protocol
from hypercorn.asyncio import serve
from hypercorn.config import Config
from hypercorn.protocol.events import Event, StreamClosed
from hypercorn.protocol.h2 import H2Protocol

from .behaviour import Behaviour
from .edge import Edge
from .origin import Origin


class ResettingH2(H2Protocol):
    """Resets a stream whose answer broke off; Hypercorn lets the visitor wait for its end."""

    async def stream_send(self, event: Event) -> None:
        """Send what an event says."""
        if isinstance(event, StreamClosed):
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is not None and not buffer.complete:
                self.connection.reset_stream(event.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
                await self._flush()
        await super().stream_send(event)


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="edge_proxy", description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--listen", required=True, metavar="ADDRESS:PORT", help="where visitors come")
    add("--certificate", required=True, metavar="FILE", help="what visitors are shown")
    add("--certificate-key", required=True, metavar="FILE")
    add("--origin", required=True, metavar="ADDRESS:PORT", help="the server behind")
    add("--origin-name", default="", metavar="NAME", help="its name in TLS; else its address")
    add("--origin-ca", metavar="FILE", help="whom it must be signed by (Full strict)")
    add("--pull-certificate", metavar="FILE", help="the edge's own (Authenticated Origin Pulls)")
    add("--pull-key", metavar="FILE")
    for item in dataclasses.fields(Behaviour):
        option = f"--{item.name.replace('_', '-')}"
        if isinstance(item.default, bool):
            add(option, action="store_true", help="a misbehaviour: see behaviour.py")
        elif isinstance(item.default, float):
            add(option, type=float, default=item.default, metavar="N")
        else:
            add(option, nargs="*", default=item.default, metavar="PREFIX")
    return parser.parse_args()


def origin_of(args: argparse.Namespace) -> Origin:
    """Return the way to the origin."""
    context = ssl.create_default_context(cafile=args.origin_ca)
    if not args.origin_ca:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if args.pull_certificate:
        context.load_cert_chain(args.pull_certificate, args.pull_key)
    host, _, port = args.origin.rpartition(":")
    return Origin(host, int(port), context, args.origin_name or host)


async def main() -> None:
    """Serve until standard input ends."""
    args = arguments()
    setattr(hypercorn.protocol, "H2Protocol", ResettingH2)  # noqa: B010 - not exported
    chosen = {item.name: getattr(args, item.name) for item in dataclasses.fields(Behaviour)}
    chosen["allowed_paths"] = tuple(chosen["allowed_paths"])
    config = Config()
    config.bind = [args.listen]
    config.certfile, config.keyfile = args.certificate, args.certificate_key
    config.alpn_protocols = ["h2", "http/1.1"]
    config.include_server_header = False
    config.h2_max_concurrent_streams = 256
    config.keep_alive_timeout = 400
    config.graceful_timeout = 0
    config.loglevel = "WARNING"
    origin = origin_of(args)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    serving = asyncio.create_task(
        serve(Edge(origin, Behaviour(**chosen)), config, shutdown_trigger=ended.wait)  # type: ignore[arg-type]
    )
    host, _, port = args.listen.rpartition(":")
    while not serving.done():
        try:
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        print("ready", flush=True)
        break
    await serving
    await origin.close()


asyncio.run(main())
