"""The ASGI application for a server to import; MILLRACE_BACKEND_CONFIG names its settings."""

from backend.application import build
from backend.settings import load_settings

app = build(load_settings())
