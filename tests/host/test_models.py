"""A model from a hub: pinned, whole, and carried on after the line broke.

No hub can be reached from a test, so tests/fixtures/hub.py stands in for one, on the server itself,
with a copy of the built-in model as the repository. Everything else is real, the proof included
that it streams: a model without a pace gives it little time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import pytest
from servers import RECITAL, ROOT, Server, figure, playbook
from test_api import ask, chat

pytestmark = [pytest.mark.breaks, pytest.mark.timing, pytest.mark.timeout(1500)]

PORT = 9100
MODEL = "acme/mill-race"
HUB = f"http://127.0.0.1:{PORT}"
FOLDER = "/var/lib/millrace/models/acme--mill-race"
SETTINGS = [
    "-e", f"vllm_model={MODEL}", "-e", f"millrace_hub_url={HUB}",
]  # fmt: skip


def serve(server: Server, *options: str) -> None:
    """Start the stand-in anew."""
    stop(server)
    server.run(
        "systemd-run --quiet --collect --unit=test-hub python3 /srv/hub/hub.py "
        f"--port {PORT} --root /srv/hub/root {' '.join(options)} && sleep 2"
    )


def stop(server: Server) -> None:
    """Stop the stand-in, if it runs."""
    server.run("systemctl stop test-hub 2>/dev/null", check=False)


@pytest.fixture
def hub(engine: Server, until_ready: Callable[[], float]) -> Iterator[Server]:
    """A server with a hub beside it; afterwards it serves the built-in model again."""
    code = (ROOT / "tests/fixtures/hub.py").read_text().replace("'", "'\\''")
    repository = f"/srv/hub/root/{MODEL}"
    engine.run(f"mkdir -p {repository} && printf '%s' '{code}' > /srv/hub/hub.py")
    engine.run(
        f"cp /var/lib/millrace/models/recital/* {repository}/ && rm {repository}/recital.json"
    )
    try:
        yield engine
    finally:
        stop(engine)
        engine.run(f"rm -rf /srv/hub {FOLDER} {FOLDER}.partial")
        # To its end: the last step notes which model is served, for who checks from here.
        done = playbook("site.yml", "--limit", engine.name)
        assert done.returncode == 0, done.stdout[-3000:]
        until_ready()


def test_from_a_hub_over_a_line_that_breaks(hub: Server) -> None:
    serve(hub, "--cut-after", "500000")
    done = playbook("site.yml", "--limit", hub.name, *SETTINGS)
    assert done.returncode != 0
    assert "Run again: it goes on from here" in " ".join(done.stdout.split()), done.stdout[-3000:]
    assert hub.run(f"ls -d {FOLDER}.partial").strip()
    assert hub.run(f"ls {FOLDER} 2>/dev/null", check=False) == ""
    # The service is as it was: nothing was switched.
    assert ask(hub, chat(max_tokens=20)).ended

    serve(hub)
    done = playbook("site.yml", "--limit", hub.name, *SETTINGS)
    assert done.returncode == 0, done.stdout[-3000:]
    commit = hub.run(f"cat {FOLDER}/.revision").strip()
    assert len(commit) == 40
    seen = ask(hub, {**chat(), "model": "mill-race"})
    assert seen.text == RECITAL
    # Without a pace the engine takes all it can get, and yet nobody behind it stands still.
    answers = [ask(hub, {**chat(max_tokens=256), "model": "mill-race"}) for _ in range(8)]
    shares = [seen.first_token() / seen.reads[-1][0] for seen in answers]
    told = ", ".join(f"{share:.2f}" for share in sorted(shares))
    figure(f"a model without a pace: the first token after {told} of the answer's time")
    assert statistics.median(shares) < 0.3

    # With the hub gone, what is there is served: nothing is asked of the network.
    stop(hub)
    done = playbook("site.yml", "--limit", hub.name, "--skip-tags", "verify", *SETTINGS)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "changed=0" in done.stdout, done.stdout
