#!/usr/bin/env python3
"""Fetch a model from the hub: a pinned revision, resumed where it broke off, or not at all.

    python fetch_model.py --model owner/name --revision COMMIT --output DIR [--token-file FILE]

What is fetched lies in DIR.partial until it is whole; run again after a broken line, it goes on
from the byte where it broke. DIR/.revision then names the commit. Progress goes to standard output,
a line every few seconds. HF_ENDPOINT names another hub.

Standard library only, because huggingface_hub (2.4.0) throws away what it has of a file when the
line breaks, and calls a half-fetched folder whole when it cannot list the repository.

Exit status: 0 there, 1 could not (the line says why), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HUB = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
MIB = 1 << 20
MARGIN_MIB = 1024
TICK_SECONDS = 2.0
SILENCE_SECONDS = 30
PAUSES_SECONDS = (1, 2, 4, 8, 15, 30)  # between tries that brought nothing
AT_ONCE = 4
# Other formats of the same weights; left out where safetensors are there.
OTHER_FORMATS = (".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")


class FetchError(Exception):
    """The model cannot be fetched; the text says why and how to mend it."""


class LineError(Exception):
    """The line broke; trying again may help."""


@dataclass(frozen=True)
class File:
    """One file of the model; `sha256` is empty where the hub keeps none."""

    name: str
    size: int
    sha256: str


class KeepTokenHome(urllib.request.HTTPRedirectHandler):
    """Follows to the hub's storage without telling it the token."""

    def redirect_request(self, req: Any, *args: Any) -> urllib.request.Request | None:
        """Return the request to follow with."""
        new = super().redirect_request(req, *args)
        if new is not None and new.host != req.host:
            new.remove_header("Authorization")
        return new


OPENER = urllib.request.build_opener(KeepTokenHome)


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def ask(model: str, path: str, token: str, start: int = 0) -> http.client.HTTPResponse:
    """Ask the hub, from byte `start` on. Raises FetchError for a refusal, else LineError."""
    headers = {"User-Agent": "millrace"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(f"{HUB.rstrip('/')}{path}", headers=headers)  # noqa: S310
    try:
        answer: http.client.HTTPResponse = OPENER.open(request, timeout=SILENCE_SECONDS)
        return answer
    except urllib.error.HTTPError as error:
        code = error.headers.get("X-Error-Code", "")
        if code == "GatedRepo" or error.code == 403:
            raise FetchError(
                f"{model} is gated: accept its terms on its page and set vault_millrace_hub_token "
                "to a token of the account that did"
            ) from None
        if code == "RevisionNotFound":
            raise FetchError(f"{model} has no such revision: check vllm_model_revision") from None
        if error.code in (401, 404):
            raise FetchError(
                f"the hub shows no {model} ({error.code}): check the name; for a private model, "
                "set vault_millrace_hub_token"
            ) from None
        raise LineError(f"the hub answered {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        raise LineError(str(error) or type(error).__name__) from None


def patiently(attempt: Any, progressed: Any = lambda: 0) -> Any:
    """Try until it works; give up after some tries in a row that brought nothing."""
    tries, before = 0, progressed()
    while True:
        try:
            return attempt()
        except LineError as error:
            now = progressed()
            tries = tries + 1 if now == before else 0
            before = now
            if tries >= len(PAUSES_SECONDS):
                raise FetchError(
                    f"the line to {HUB} broke: {error}. Run again: it goes on from here"
                ) from None
            time.sleep(PAUSES_SECONDS[tries])


def describe(model: str, revision: str, token: str) -> tuple[str, list[File]]:
    """Return the commit and the files that vLLM loads. Raises FetchError."""
    path = f"/api/models/{model}/revision/{urllib.parse.quote(revision or 'main', safe='')}"

    def attempt() -> Any:
        try:
            with ask(model, f"{path}?blobs=true", token) as answer:
                return json.load(answer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LineError(str(error)) from None

    told = patiently(attempt)
    try:
        files = [
            File(str(f["rfilename"]), int(f["size"]), str((f.get("lfs") or {}).get("sha256", "")))
            for f in told["siblings"]
        ]
        commit = str(told["sha"])
    except (KeyError, TypeError, ValueError) as error:
        raise FetchError(f"what the hub says of {model} is not understood: {error!r}") from None
    if any(Path(f.name).is_absolute() or ".." in Path(f.name).parts for f in files):
        raise FetchError(f"{model} has files outside its own folder; it is not to be trusted")
    safe = any(f.name.endswith(".safetensors") for f in files)
    skip = OTHER_FORMATS if safe else (".gguf",)
    files = [f for f in files if not f.name.endswith(skip)]
    if not any(f.name == "config.json" for f in files):
        raise FetchError(f"{model} holds no config.json, so it is no model that vLLM loads")
    return commit, files


class Fetch:
    """The files of one commit on their way into a folder."""

    def __init__(self, model: str, commit: str, files: list[File], into: Path, token: str) -> None:
        """Prepare; nothing is fetched yet."""
        self.model, self.commit, self.files = model, commit, files
        self.into, self.token = into, token
        self.total = sum(f.size for f in files)
        self.over = threading.Event()

    def part(self, file: File) -> Path:
        """Return where the beginning of a file lies."""
        return self.into / f"{file.name}.part"

    def arrived(self, file: File) -> int:
        """Return how much of a file is there."""
        for path in (self.into / file.name, self.part(file)):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                continue
        return 0

    def arrived_in_all(self) -> int:
        """Return how much is there."""
        return sum(self.arrived(f) for f in self.files)

    def read(self, file: File) -> None:
        """Fetch what is missing of a file. Raises LineError where the line breaks."""
        part = self.part(file)
        with part.open("ab") as target:
            start = target.tell()
            if start < file.size:
                name = urllib.parse.quote(file.name)
                path = f"/{self.model}/resolve/{self.commit}/{name}"
                with ask(self.model, path, self.token, start) as answer:
                    if start and answer.status != 206:
                        target.truncate(0)  # all of it comes again
                    try:
                        while block := answer.read(MIB):
                            target.write(block)
                            if self.over.is_set():
                                raise FetchError("stopped")
                    except http.client.HTTPException as error:
                        raise LineError(f"{type(error).__name__} in {file.name}") from None
                    except (TimeoutError, ConnectionError) as error:
                        raise LineError(f"{error} in {file.name}") from None
        if part.stat().st_size < file.size:
            raise LineError(f"{file.name} ended early")

    def file(self, file: File) -> None:
        """Fetch one file, whole and right. Raises FetchError."""
        there = self.into / file.name
        if there.exists():
            return
        there.parent.mkdir(parents=True, exist_ok=True)
        patiently(lambda: self.read(file), lambda: self.arrived(file))
        part = self.part(file)
        right = part.stat().st_size == file.size
        if right and file.sha256:
            with part.open("rb") as source:
                right = hashlib.file_digest(source, "sha256").hexdigest() == file.sha256
        if not right:
            part.unlink()
            raise FetchError(f"{file.name} arrived damaged and was thrown away; run again")
        part.rename(there)

    def watch(self) -> None:
        """Say every few seconds how much has arrived."""
        before, at = self.arrived_in_all(), time.monotonic()
        while not self.over.wait(TICK_SECONDS):
            now, then = self.arrived_in_all(), time.monotonic()
            pace = max(now - before, 0) / (then - at) / MIB
            percent = 100 * now // max(self.total, 1)
            say(f"{percent}% of {self.total // MIB} MiB, {pace:.0f} MiB/s")
            before, at = now, then

    def run(self) -> None:
        """Fetch every file. Raises FetchError."""
        threading.Thread(target=self.watch, daemon=True).start()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            jobs = [pool.submit(self.file, f) for f in self.files]
            done, waiting = wait(jobs, return_when=FIRST_EXCEPTION)
            self.over.set()
            for job in waiting:
                job.cancel()
            for job in done:
                job.result()


def kept(output: Path) -> str:
    """Return the commit that is there already, or nothing."""
    mark = output / ".revision"
    return mark.read_text().strip() if mark.is_file() else ""


def fetch(model: str, revision: str, output: Path, token: str) -> str:
    """Fetch and return the commit. Raises FetchError."""
    output.parent.mkdir(parents=True, exist_ok=True)
    # A run whose controller was killed leaves its fetcher working: wait for it, don't race it.
    lock = os.open(output.parent, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        commit, files = describe(model, revision, token)
        if kept(output) == commit:
            return commit
        partial = output.with_name(output.name + ".partial")
        wanted = partial / ".wanted"
        if wanted.exists() and wanted.read_text() != commit:
            shutil.rmtree(partial)  # the beginnings of another revision are of no use
        partial.mkdir(exist_ok=True)
        wanted.write_text(commit)
        job = Fetch(model, commit, files, partial, token)
        missing = (job.total - job.arrived_in_all()) // MIB + MARGIN_MIB
        free = shutil.disk_usage(partial).free // MIB
        if free < missing:
            raise FetchError(
                f"{missing} MiB are needed for {model} and {free} are free at {output.parent}"
            )
        job.run()
        (partial / ".revision").write_text(f"{commit}\n")
        wanted.unlink()
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
        return commit
    finally:
        os.close(lock)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--revision", default="", help="commit, tag or branch")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--token-file", type=Path, help="file that holds the hub's token")
    args = parser.parse_args()
    os.umask(0o022)
    token = args.token_file.read_text().strip() if args.token_file else ""
    try:
        commit = fetch(args.model, args.revision, args.output, token)
    except (FetchError, OSError) as error:
        say(f"fetch_model: {error}")
        return 1
    say(f"{args.model} at {commit} is in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
