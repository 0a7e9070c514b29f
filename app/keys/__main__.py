"""Make, list, revoke and rotate clients' keys: `./millrace key`."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Sequence
from typing import Any

from keys import servers, table, terms
from keys.inventory import LIMITS, sha256

EPILOG = """
examples:
  ./millrace key add alice
  ./millrace key add guest --expires 90d --models Qwen3-8B --requests-per-minute 60 chat
  ./millrace key rotate alice --grace 10m
  ./millrace key revoke guest
  ./millrace key list -i inventory/sandbox/demo.yml

A key is shown once, on standard output; the servers get and keep only its hash. What changes,
changes within a second and without a restart. SERVER is one of the inventory; without it, all are
meant. What a key may do besides is told by: ./millrace key add --help
Ansible's own options may follow after --, such as -- --ask-vault-pass.

exit codes: 0 done, 1 it could not be done (nothing was changed), 2 the command line is wrong."""
_PREFIX = "mr-"
_RANDOM_BYTES = 32


VERBS = {
    "add": "make a key and show it, once",
    "list": "show every key, without its text",
    "revoke": "end a key now",
    "rotate": "give a key a new text and show it, once",
}


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 when it is wrong."""
    given = list(words)
    at = given.index("--") if "--" in given else len(given)
    given, more = given[:at], given[at + 1 :]
    if not given or given[0] not in VERBS:
        listed = "\n".join(f"  {verb:<8}{what}" for verb, what in VERBS.items())
        parser = argparse.ArgumentParser(
            prog="millrace key",
            description=f"{__doc__}\n\n{listed}",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage="millrace key add|list|revoke|rotate [NAME] [OPTIONS] [SERVER]",
        )
        parser.add_argument("verb", choices=sorted(VERBS), help=argparse.SUPPRESS)
        parser.parse_args(given)
    verb, *rest = given
    parser = _parser(verb)
    # Options may stand between the two words.
    arguments = parser.parse_intermixed_args(rest)
    arguments.do, arguments.more = verb, more
    if not (servers.ROOT / arguments.inventory).exists():
        parser.error(
            f"there is no {arguments.inventory}: copy inventory/hosts.example.yml to "
            "inventory/hosts.yml, or name another with -i"
        )
    return arguments


def _parser(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"millrace key {verb}", description=VERBS[verb].capitalize() + ".", allow_abbrev=False
    )
    if verb != "list":
        parser.add_argument("name", metavar="NAME", type=terms.name, help="whose it is, for logs")
    if verb == "add":
        parser.add_argument(
            "--expires",
            metavar="90d|DATE",
            type=terms.Moment,
            help="when it ends: so long from now, or a date (0:00 UTC); without it, never",
        )
        parser.add_argument(
            "--models", metavar="M,...", type=terms.models, help="what it may ask for (all)"
        )
        for limit in LIMITS:
            option = f"--{limit.replace('_', '-')}"
            parser.add_argument(option, metavar="N", type=terms.count, help="at most (no limit)")
    if verb == "rotate":
        parser.add_argument(
            "--grace", metavar="10m", type=terms.duration, help="let the old text work so long (0)"
        )
    parser.add_argument(
        "server", metavar="SERVER", nargs="?", default="", help="of the inventory (all of them)"
    )
    parser.add_argument(
        "-i",
        "--inventory",
        metavar="FILE",
        default="inventory/hosts.yml",
        help="the inventory whose servers are meant (%(default)s)",
    )
    return parser


def order_of(arguments: argparse.Namespace, text: str, now: int) -> dict[str, Any]:
    """Return the order for the servers; `text` is the new key, of which only the hash goes in."""
    if arguments.do == "list":
        return {"do": "list"}
    if arguments.do == "revoke":
        return {"do": "revoke", "name": arguments.name}
    if arguments.do == "rotate":
        order = {"do": "rotate", "name": arguments.name, "sha256": sha256(text)}
        return {**order, "previous_expires": now + arguments.grace} if arguments.grace else order
    limits = {limit: getattr(arguments, limit) for limit in LIMITS if getattr(arguments, limit)}
    entry = {
        "name": arguments.name,
        "sha256": sha256(text),
        "created": now,
        "expires": arguments.expires.unix(now) if arguments.expires else None,
        "models": arguments.models,
        "limits": limits or None,
    }
    return {"do": "add", "entry": {k: v for k, v in entry.items() if v is not None}}


def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    arguments = parse(sys.argv[1:] if words is None else words)
    now = int(time.time())
    text = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    order = order_of(arguments, text, now)
    entry = order.get("entry", {})
    if entry.get("expires", now + 1) <= now:
        print("millrace key: that end is in the past", file=sys.stderr)
        return 2
    try:
        answers = servers.carry_out(order, arguments.inventory, arguments.server, arguments.more)
    except servers.RunError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.do == "list":
        print("\n".join(table.lines(answers)))
        return 0
    where = ", ".join(sorted(answers))
    if arguments.do == "revoke":
        print(f"{arguments.name} is revoked on {where}.", file=sys.stderr)
        return 0
    key = next(key for key in next(iter(answers.values()))["keys"] if key["name"] == arguments.name)
    print(f"{arguments.name} on {where}: {table.terms(key)}.", file=sys.stderr)
    print("The key, which is shown this once:", file=sys.stderr)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
