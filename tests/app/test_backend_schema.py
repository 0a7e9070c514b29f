"""The backend against its own OpenAPI document: schemathesis makes requests up, good and bad."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest
import schemathesis
from backend_client import KEY
from backend_upstream import Answer, Received, Upstream, answer_with_tokens
from conftest import Files, ThreadBackend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

HEADERS = {"Authorization": f"Bearer {KEY}"}
BOUNDED = settings(
    max_examples=10,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
REQUEST_SECONDS = 10
# What would only take the emitter's time, or a poll's.
QUICK = {"pace_ms": "0", "lead_ms": "0", "silence_seconds": "0"}


class ThreadUpstream:
    """The scripted upstream on an event loop of its own."""

    def __init__(self) -> None:
        self.upstream = Upstream()
        self.upstream.script = self._answer
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._run(self.upstream.start())

    @staticmethod
    async def _answer(request: Received, answer: Answer) -> None:
        # The status page looks whether the gateway is alive.
        if request.method == "GET":
            await answer.whole(b"{}")
        else:
            await answer_with_tokens(request, answer)

    def stop(self) -> None:
        self._run(self.upstream.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    folder = tmp_path_factory.mktemp("schema")
    upstream = ThreadUpstream()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CREDENTIALS_DIRECTORY", str(folder / "credentials"))
        backend = ThreadBackend(Files(folder).write_config(upstream.upstream.port))
    url = f"http://127.0.0.1:{backend.port}"
    yield schemathesis.openapi.from_url(f"{url}/openapi.json", headers=HEADERS)
    backend.stop()
    backend.join()
    upstream.stop()
    assert not upstream.upstream.errors


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_it_answers_as_its_document_says(document, subtests, mode) -> None:
    @BOUNDED
    @given(st.data())
    def holds(data) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        # What has the right type here may still ask for too much, or be for the engine to judge.
        unasked = [positive_data_acceptance]
        if operation.path.endswith("/streamcheck"):
            case.query = {**(case.query or {}), **QUICK}
            unasked.append(negative_data_rejection)  # What was wrong with them is gone.
        elif "wait" in (case.query or {}):
            case.query["wait"] = 0
        case.call_and_validate(headers=HEADERS, timeout=REQUEST_SECONDS, excluded_checks=unasked)

    for found in document.get_all_operations():
        operation = found.ok()
        with subtests.test(operation.label), contextlib.suppress(Unsatisfiable):
            holds()  # There is no wrong request where nothing is asked for.
