"""Puts the parts together into one ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.types import ASGIApp

from backend import errors, metrics_server
from backend.admission import Admission
from backend.api_request import RequestParser
from backend.auth import Authenticate
from backend.doors import Doors
from backend.exchange import Exchanges
from backend.express.handoffs import Handoffs
from backend.key_files import KeyFiles
from backend.keys import KeyRing
from backend.metrics import Metrics
from backend.metrics_server import INSTANCE_VARIABLE
from backend.readiness import Readiness
from backend.routes import make_router
from backend.service_manager import managed
from backend.services import Services
from backend.session_routes import make_session_router
from backend.sessions import Sessions
from backend.settings import Settings, read_credential
from backend.streams.access import StreamAccess
from backend.streams.buffer import Pool
from backend.streams.peers import Peers, tag_of
from backend.streams.redis_store import RedisStore
from backend.streams.registry import Streams
from backend.streams.routes import make_stream_router
from backend.streams.store import StreamStore
from backend.upstream import Upstream

# Longer than a relay's last words take, see relay.py.
_LAST_WORDS_SECONDS = 3.0
_FLUSH_SECONDS = 0.05
# A probe of an idle engine takes a tenth of this; behind a full queue it must not hold a start up.
_FIRST_LOOK_SECONDS = 3.0


def build(settings: Settings) -> ASGIApp:
    """Return the application; raises ConfigError for a bad keys file or credential.

    From the outside in: Exchanges (request id, log) -> Peers (streams that live elsewhere) ->
    Authenticate -> FastAPI (errors, routes) -> Relay. The outer three are pure ASGI and wrap no
    body.
    """
    instance = os.environ.get(INSTANCE_VARIABLE, "")
    keys = KeyRing(KeyFiles(settings.keys_file, settings.issued_keys_file))
    doors = Doors(settings.wrong_keys_per_minute)
    sessions = Sessions(_session_secret(settings), settings.session_seconds, keys)
    upstream = Upstream(settings, read_credential(settings.upstream_key_credential))
    readiness = Readiness(settings, upstream)
    pool = Pool(settings.streams_buffer_bytes)
    store = RedisStore(settings, pool) if settings.has_redis else StreamStore()
    streams = Streams(settings, tag_of(instance), pool, store)
    metrics = Metrics()
    admission = Admission(settings, metrics)
    handoffs = Handoffs(settings, upstream, readiness, metrics, instance)
    metrics.watch_tokens(readiness.token_age)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await upstream.open()
        await store.open()
        await handoffs.open()
        watch = asyncio.create_task(readiness.keep_watch())
        if managed():
            # Another instance may be serving until we do: /readyz shall not say no in between.
            await readiness.first_look(_FIRST_LOOK_SECONDS)
        with metrics_server.serving(settings, metrics):
            yield
        # uvicorn comes here right after it has cancelled the requests that outlived the drain
        # time; they still have to tell their clients so, and the bytes have to leave.
        await exchanges.drained(_LAST_WORDS_SECONDS)
        await asyncio.sleep(_FLUSH_SECONDS)
        await handoffs.close()
        await store.close()
        streams.close()
        watch.cancel()
        await asyncio.wait({watch})
        await peers.close()
        await admission.close()
        await upstream.close()

    # No docs pages; /openapi.json lies behind the keys like everything else.
    app = FastAPI(
        title="Millrace", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    errors.install(app)
    services = Services(
        settings, upstream, readiness, metrics, admission, RequestParser(settings), handoffs
    )
    app.include_router(make_router(services))
    app.include_router(make_session_router(settings, keys, doors, sessions))
    app.include_router(make_stream_router(services, streams))
    ways = [StreamAccess(streams, keys).find, sessions.find]
    peers = Peers(Authenticate(app, keys, doors, ways), settings, instance)
    exchanges = Exchanges(peers, metrics, elsewhere=lambda: handoffs.count)
    return exchanges


def _session_secret(settings: Settings) -> str:
    name = settings.session_secret_credential
    return secrets.token_hex(32) if name is None else read_credential(name)
