"""The command line: `python -m ask https://host "question"`.

Exit codes: 0 the answer streamed to its end, 1 it broke off, 2 the service could not be asked.
"""

from __future__ import annotations

import argparse
import os
import sys
import urllib.parse
from pathlib import Path

from ask.stream import AskError, BrokenStreamError, chat, connect, first_model

QUESTION = "How does the water find its way to the wheel?"


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="./millrace ask", description="Ask a question and print the answer as it streams."
    )
    parser.add_argument("url", help="the service's address, such as https://chat.example.org")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument(
        "--key-file", type=Path, help="file that holds the key (or set MILLRACE_KEY)"
    )
    parser.add_argument("--ca", help="certificate to trust, for a self-signed service")
    parser.add_argument("--model", help="the model's name (default: the first one offered)")
    parser.add_argument("--max-tokens", type=int, help="end the answer after this many tokens")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds of silence to bear")
    parser.add_argument("--quiet", action="store_true", help="print the figures only")
    return parser.parse_args()


def run(args: argparse.Namespace) -> int:
    """Ask, print, and return the exit code. Raises AskError."""
    key = args.key_file.read_text().strip() if args.key_file else os.environ.get("MILLRACE_KEY", "")
    if not key:
        raise AskError("no key: give --key-file or set MILLRACE_KEY")
    base = urllib.parse.urlsplit(args.url).path.rstrip("/").removesuffix("/v1")
    connection = connect(args.url, args.ca, args.timeout)
    model = args.model or first_model(connection, key, base)
    request = {"model": model, "messages": [{"role": "user", "content": args.question}]}
    if args.max_tokens:
        request["max_tokens"] = args.max_tokens
    pieces, tally = chat(connection, key, request, base)
    for piece in pieces:
        if not args.quiet:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if not args.quiet:
        sys.stdout.write("\n\n")
    if not tally.ended or not tally.tokens:
        raise BrokenStreamError("the stream was cut before its end")
    gaps = sorted(tally.gaps) or [0.0]
    sys.stdout.write(
        f"first token after {tally.first_token_seconds:.2f} s, {tally.tokens} tokens at "
        f"{tally.tokens_per_second:.0f}/s, {tally.events_per_read:.2f} events per read, longest "
        f"gap {1000 * gaps[-1]:.0f} ms\n"
    )
    return 0


def main() -> int:
    """Run the command line."""
    args = arguments()
    try:
        return run(args)
    except AskError as error:
        sys.stderr.write(f"ask: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"ask: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
