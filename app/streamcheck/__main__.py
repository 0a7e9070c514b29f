"""The command line: `./millrace check` on a laptop, `millrace-check` on a server.

Exit codes: 0 every hop streams; 1 a hop breaks the stream; 2 it could not be checked, or what was
seen allows no verdict.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from streamcheck import chain as chains
from streamcheck import deep, engine, keep, proved, remote, report, text
from streamcheck.asker import TOKENS, Asker
from streamcheck.chain import Chain
from streamcheck.model import CheckError
from streamcheck.page import render_page
from streamcheck.progress import Progress
from streamcheck.walk import SILENCE_SECONDS, Walk

EXIT = {"streams": 0, "broken": 1, "unsure": 2, "unreachable": 2}
EPILOG = """\
examples:
  ./millrace check https://chat.example.org --key-file key      any OpenAI-compatible address
  ./millrace check                                              the server of inventory/hosts.yml
  ./millrace check chat --deep --html report.html               one of several, everything, a page
  ./millrace check --hop engine=http://127.0.0.1:8000 --hop proxy=https://chat.example.org
                                                                hops of your own, innermost first
exit codes: 0 every hop streams, 1 a hop breaks the stream, 2 it could not be checked
"""


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=os.environ.get("MILLRACE_PROG", "./millrace check"),
        description="Drive real streams through every hop of a chat service, time every read, and "
        "name the hop that buffers, drops, delays or breaks them.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    # fmt: off
    add = parser.add_argument
    add("target", nargs="?", help="an address (https://host, with or without /v1), or a server's "
        "name in the inventory; without it: the one server that site.yml has set up")
    add = parser.add_argument_group("where").add_argument
    add("--hop", action="append", default=[], metavar="NAME=URL",
        help="a hop by name and address, innermost first; may be repeated")
    add("-i", "--inventory", default="inventory/hosts.yml", metavar="FILE",
        help="the inventory whose servers are meant (default: %(default)s)")
    add("--address", default="", metavar="URL", help="the server's public address, where it is "
        "another than the run of site.yml used: its name at Cloudflare, a proxy in front")
    add("--outside", action="store_true", help="leave out the hops inside the server: no ssh")
    add("--key-file", type=Path, metavar="FILE",
        help=f"file that holds the key (or set {chains.KEY_VARIABLE})")
    add("--ca", default="", metavar="FILE", help="certificate to trust, for a self-signed service")
    add("--model", default="", help="the model's name (default: the first offered)")
    add = parser.add_argument_group("how much").add_argument
    add("--deep", nargs="?", const=",".join(deep.CHECKS), default="", metavar="CHECKS",
        help=f"also check {', '.join(deep.CHECKS)}: all, or those named; takes over two minutes")
    add("--silence", type=float, default=SILENCE_SECONDS, metavar="SECONDS",
        help="a silence that each hop must bear without heartbeats, twice their interval "
        "(default: %(default)g; 0: leave it out)")
    add("--tokens", type=int, default=TOKENS, metavar="N",
        help="length of the answers asked for (default: %(default)s)")
    add = parser.add_argument_group("what is shown").add_argument
    add("--json", action="store_true", help="print the report as JSON")
    add("--html", type=Path, metavar="FILE", help="write the report as a page, too")
    add("--verbose", action="store_true", help="a line for every way of asking")
    add("--quiet", action="store_true", help="no progress, the verdict only")
    # fmt: on
    # For the kit itself: on the server, and between the server and the laptop.
    for name in ("--chain", "--service", "--told", "--keep"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--progress", action="store_true", help=argparse.SUPPRESS)
    for name in ("--watch-engine", "--unless-proved"):
        parser.add_argument(name, type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.deep = [name for name in args.deep.split(",") if name]
    if unknown := set(args.deep) - set(deep.CHECKS):
        parser.error(f"--deep knows {', '.join(deep.CHECKS)}, not {', '.join(sorted(unknown))}")
    if not 8 <= args.tokens <= 4096:
        parser.error("--tokens must be between 8 and 4096: fewer tell nothing")
    if not 0 <= args.silence <= 300:
        parser.error("--silence must be between 0 and 300 seconds")
    return args


def _told(path: Path | None) -> dict[str, Any]:
    """Return what a run of site.yml tells: `key`, and the report `inner` of the hops inside.

    By one file, since it comes by standard input: a key is nothing for a list of processes, and a
    file of its own would be one to clear away. Raises CheckError.
    """
    if path is None:
        return {}
    try:
        told = json.loads(path.read_bytes())
        return {"key": str(told["key"]), "inner": dict(told["inner"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckError(f"{path} holds no key and report of the inner hops") from None


def _key(args: argparse.Namespace, told: dict[str, Any]) -> str:
    if told:
        return str(told["key"]).strip()
    if args.key_file:
        return chains.read_key(args.key_file)
    return os.environ.get(chains.KEY_VARIABLE, "").strip()


def _chain(args: argparse.Namespace, told: dict[str, Any]) -> Chain:
    """Return the chain that the command line means. Raises CheckError."""
    if args.chain:
        return chains.from_file(args.chain)
    key = _key(args, told)
    if args.hop:
        pairs = [hop.partition("=") for hop in args.hop]
        if not all(name and url for name, _, url in pairs):
            raise CheckError("--hop takes NAME=URL, such as --hop engine=http://127.0.0.1:8000")
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise CheckError("two hops have the same name")
        addresses = {name: url for name, _, url in pairs}
        if args.target:
            addresses["public"] = args.target
        return chains.from_addresses(addresses, key, args.ca, args.model)
    if args.target and "://" in args.target:
        return chains.from_addresses({"public": args.target}, key, args.ca, args.model)
    path = args.service or _service(args)
    outside_only = args.outside or bool(told)
    return chains.from_service(path, key, address=args.address, outside_only=outside_only)


def _service(args: argparse.Namespace) -> Path:
    """Return the file that site.yml left about the server that is meant. Raises CheckError."""
    secrets = Path(args.inventory).parent / "secrets"
    known = {path.parent.name: path for path in sorted(secrets.glob("*/service.json"))}
    if args.target:
        if args.target in known:
            return known[args.target]
        raise CheckError(
            f"{args.target} is no address (https://…) and no server that ./millrace site has set "
            f"up; known: {', '.join(known) or 'none'}"
        )
    if len(known) > 1:
        # Those of this inventory: other inventories may keep their secrets in the same folder.
        named = _text(Path(args.inventory))
        known = {name: path for name, path in known.items() if name in named} or known
    if len(known) == 1:
        return next(iter(known.values()))
    if known:
        raise CheckError(f"which server? Name one of {', '.join(known)}")
    raise CheckError(
        "what is to be checked? Give an address (https://host), or run ./millrace site first"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _inner(args: argparse.Namespace, chain: Chain, progress: Progress) -> dict[str, Any] | None:
    """Return the report of the hops inside the server, if they are to be asked."""
    if not chain.ssh:
        return None
    more = [f"--silence={args.silence:g}", f"--tokens={args.tokens}"]
    more += [f"--deep={','.join(args.deep)}"] if args.deep else []
    return remote.inner_report(chain.ssh, more, progress.say)


def _check(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Walk and return the report. Raises CheckError."""
    started, began = datetime.datetime.now(datetime.UTC), time.monotonic()
    given = _told(args.told)
    chain = _chain(args, given)
    asker = Asker(chain.model, args.tokens)
    walk = Walk(chain.hops, asker, progress.say, args.silence)
    walk.begin()
    more = deep.Deep(walk, args.deep)
    more.begin()
    inner = given["inner"] if given else _inner(args, chain, progress)
    entries: list[dict[str, Any]] = list(inner["hops"]) if inner else []
    checks: list[dict[str, Any]] = list(inner["checks"]) if inner else []
    notes: list[str] = list(inner["notes"]) if inner else []
    noise = list(inner["noise"]) if inner else []
    if inner and (inner["verdict"] == "unreachable" or not entries):
        return {**inner, "took_seconds": round(time.monotonic() - began, 1)}
    behind = report.remembered(entries[-1]) if entries else None
    broken = any(entry["verdict"] == "broken" for entry in entries)
    hops = walk.run(behind, brief=broken)
    if args.deep and not any(hop.error for hop in hops):
        checks += _deep(chain, more)
        checks.sort(key=lambda entry: deep.CHECKS.index(entry["name"]))
    asker.metronome.stop()
    where = "server" if args.chain else "here"
    return report.report(
        [*entries, *map(report.hop_entry, hops)], started=started,
        took_seconds=time.monotonic() - began, noise=[*noise, asker.metronome.summary(where)],
        notes=[*notes, *asker.notes], checks=checks,
    )  # fmt: skip


def _unless_proved(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Return the report of what was proved, where nothing changed; else walk. Raises CheckError."""
    proof = chains.proof(args.chain)
    before = proved.state(proof.units, proof.paths)
    if known := proved.remembered(proof.file, before, args.unless_proved, args.silence):
        return known
    told = _check(args, progress)
    # What changed meanwhile was not proved.
    if told["verdict"] == "streams" and proved.state(proof.units, proof.paths) == before:
        proved.remember(proof.file, before, args.silence, told)
    return told


def _deep(chain: Chain, more: deep.Deep) -> list[dict[str, Any]]:
    if chain.metrics:
        return more.run(engine.local(chain.metrics))
    if not chain.ssh:
        return more.run(None)
    watched = engine.Watched(remote.command(chain.ssh, "--watch-engine=600"))
    try:
        return more.run(watched)
    finally:
        watched.close()


def _show(args: argparse.Namespace, told: dict[str, Any]) -> None:
    if args.html:
        keep.write_whole(args.html, render_page(told))
    if args.keep:
        keep.keep(args.keep, told)
    if args.json:
        sys.stdout.write(json.dumps(told, ensure_ascii=True) + "\n")
    elif told["verdict"] == "unreachable":
        sys.stderr.write(f"check: {told['error']}\n")
    elif args.quiet:
        sys.stdout.write(told["summary"] + "\n")
        for name, value in (told["remedy"] or {}).items():
            sys.stdout.write(f"  {name}: {value}\n" if value else "")
    else:
        terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if terminal else 100
        plain = not (sys.stdout.encoding or "").lower().startswith("utf")
        color = terminal and "NO_COLOR" not in os.environ
        sys.stdout.write(
            text.render(told, width=width, color=color, verbose=args.verbose, ascii_only=plain)
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    args = _arguments(argv)
    progress = Progress(raw=args.progress, quiet=args.quiet)
    started, began = datetime.datetime.now(datetime.UTC), time.monotonic()
    try:
        if args.watch_engine:
            metrics = chains.from_file(args.chain).metrics
            assert metrics is not None
            engine.print_counts(engine.local(metrics), args.watch_engine)
            return 0
        walk = _check if args.unless_proved is None else _unless_proved
        told = walk(args, progress)
    except CheckError as error:
        told = report.could_not(str(error), started, time.monotonic() - began)
    except KeyboardInterrupt:
        progress.done()
        return 130
    progress.done()
    try:
        _show(args, told)
    except BrokenPipeError:
        return EXIT[told["verdict"]]
    except OSError as error:
        sys.stderr.write(f"check: cannot write {error.filename}: {error.strerror}\n")
        return 2
    if args.json and told["error"]:
        sys.stderr.write(f"check: {told['error']}\n")
    return EXIT[told["verdict"]]


if __name__ == "__main__":
    sys.exit(main())
