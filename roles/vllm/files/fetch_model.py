#!/usr/bin/env python3
"""Fetch a model from the hub: a pinned revision, resumed where it broke off, or not at all.

    python fetch_model.py --model owner/name --revision COMMIT --output DIR [--token-file FILE]

Runs in the engine's own venv, with its huggingface_hub. What is fetched lies in DIR.partial until
it is whole; run again after a broken line, it goes on from there. DIR/.revision then names the
commit. Progress goes to standard output, a line every few seconds.

Exit status: 0 there, 1 could not (the line says why), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20
MARGIN_MIB = 1024
TICK_SECONDS = 2.0
# Other formats of the same weights; left out where safetensors are there.
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack")


class FetchError(Exception):
    """The model cannot be fetched; the text says why and how to mend it."""


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def told(error: Exception) -> str:
    """Return an error's kind and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def bytes_in(folder: Path) -> int:
    """Return the bytes that lie in `folder`, half-fetched files included."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_blocks * 512 if file.is_file() else 0
        except OSError:
            continue  # renamed meanwhile
    return total


class Progress(threading.Thread):
    """Says every few seconds how much has arrived."""

    def __init__(self, folder: Path, total: int) -> None:
        """Watch `folder` fill up to `total` bytes."""
        super().__init__(daemon=True)
        self.folder, self.total, self.done = folder, max(total, 1), threading.Event()

    def run(self) -> None:
        """Print until told to stop."""
        before, at = bytes_in(self.folder), time.monotonic()
        while not self.done.wait(TICK_SECONDS):
            now, then = bytes_in(self.folder), time.monotonic()
            pace = (now - before) / (then - at) / MIB
            percent = min(100 * now // self.total, 100)
            say(f"{percent}% of {self.total // MIB} MiB, {pace:.0f} MiB/s")
            before, at = now, then


def plan(info: Any) -> tuple[list[str], int]:
    """Return what to leave out, as patterns, and the bytes of the rest."""
    files = {f.rfilename: f.size or 0 for f in info.siblings}
    safe = any(name.endswith(".safetensors") for name in files)
    skip = list(OTHER_FORMATS) if safe else ["*.gguf"]
    endings = tuple(pattern[1:] for pattern in skip)
    return skip, sum(size for name, size in files.items() if not name.endswith(endings))


def fetch(model: str, revision: str, output: Path, token: str | None) -> str:
    """Fetch and return the commit. Raises FetchError."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = HfApi(token=token).model_info(model, revision=revision or None, files_metadata=True)
    except GatedRepoError:
        raise FetchError(
            f"{model} is gated: accept its terms on its page and set vault_millrace_hub_token"
        ) from None
    except RepositoryNotFoundError:
        raise FetchError(f"the hub knows no {model}, or it is private: check the name") from None
    except Exception as error:  # the hub's library lets its HTTP library's own errors through
        raise FetchError(f"the hub did not answer: {told(error)}") from None
    skip, total = plan(info)
    partial = output.with_name(output.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    wanted = partial / ".wanted"
    if wanted.exists() and wanted.read_text() != info.sha:
        shutil.rmtree(partial)  # the beginnings of another revision are of no use
        partial.mkdir()
    wanted.write_text(info.sha)
    missing = (total - bytes_in(partial)) // MIB + MARGIN_MIB
    free = shutil.disk_usage(partial).free // MIB
    if free < missing:
        raise FetchError(f"{missing} MiB are needed for {model} and {free} are free at {partial}")
    progress = Progress(partial, total)
    progress.start()
    try:
        snapshot_download(
            model, revision=info.sha, local_dir=partial, token=token, ignore_patterns=skip
        )
    except Exception as error:
        raise FetchError(
            f"the line broke: {told(error)}. Run again: it goes on from here"
        ) from None
    finally:
        progress.done.set()
    for file in info.siblings:
        kept = partial / file.rfilename
        if kept.exists() and file.size is not None and kept.stat().st_size != file.size:
            raise FetchError(f"{file.rfilename} arrived with the wrong size; run again")
    if not (partial / "config.json").is_file():
        raise FetchError(f"{model} holds no config.json, so it is no model that vLLM loads")
    (partial / ".revision").write_text(f"{info.sha}\n")
    wanted.unlink()
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    if output.exists():
        shutil.rmtree(output)
    partial.rename(output)
    return str(info.sha)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--revision", default="", help="commit, tag or branch")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--token-file", type=Path, help="file that holds the hub's token")
    args = parser.parse_args()
    os.umask(0o022)
    token = args.token_file.read_text().strip() if args.token_file else None
    try:
        commit = fetch(args.model, args.revision, args.output, token or None)
    except FetchError as error:
        say(f"fetch_model: {error}")
        return 1
    say(f"{args.model} at {commit} is in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
