"""What each plan of Cloudflare's has, from its public documentation (November 2026)."""

from __future__ import annotations

RULES = {
    "http_request_cache_settings": {"free": 10, "pro": 25, "business": 50, "enterprise": 300},
    "http_config_settings": {"free": 10, "pro": 25, "business": 50, "enterprise": 300},
    "http_response_compression": {"free": 10, "pro": 25, "business": 50, "enterprise": 300},
    "http_request_firewall_custom": {"free": 5, "pro": 20, "business": 100, "enterprise": 1000},
    "http_ratelimit": {"free": 1, "pro": 2, "business": 5, "enterprise": 100},
}
"""The most rules a zone may have in a phase."""

PERIODS = [10, 15, 20, 30, 40, 45, 60, 90, 120, 180, 240, 300, 480, 600, 900, 1200, 1800, 2400,
           3600, 65535, 86400]  # fmt: skip
LONGEST_PERIOD = {"free": 10, "pro": 60, "business": 600, "enterprise": 65535}
LONGEST_MITIGATION = {"free": 10, "pro": 3600, "business": 86400, "enterprise": 86400}
RATE_LIMIT_FIELDS = {
    "free": {"http.request.uri.path", "cf.bot_management.verified_bot"},
    "pro": {"http.host", "http.request.uri", "http.request.uri.path", "http.request.full_uri",
            "http.request.uri.query", "cf.bot_management.verified_bot"},
}  # fmt: skip
"""Fields that a rate limiting rule may look at; plans that are not here: any of ours."""

PLAN_NAMES = {
    "free": "Free Website",
    "pro": "Pro Website",
    "business": "Business Website",
    "enterprise": "Enterprise Website",
}

SETTINGS = {
    "ssl": "full",
    "min_tls_version": "1.0",
    "tls_1_3": "off",
    "http2": "on",
    "http3": "off",
    "always_use_https": "off",
    "0rtt": "off",
    "websockets": "on",
    "brotli": "on",
    "rocket_loader": "off",
    "email_obfuscation": "on",
    "browser_check": "on",
    "automatic_https_rewrites": "on",
    "tls_client_auth": "off",
    "response_buffering": "off",
    "proxy_read_timeout": 100,
}
"""Zone settings and what a fresh zone has."""

EDITABLE_FROM = {
    "http2": "pro",
    "response_buffering": "enterprise",
    "proxy_read_timeout": "enterprise",
}
"""The lowest plan that may change a setting; what is not here all may."""

ORDER = ["free", "pro", "business", "enterprise"]


def editable(setting: str, plan: str) -> bool:
    """Tell whether a plan may change a setting."""
    return ORDER.index(plan) >= ORDER.index(EDITABLE_FROM.get(setting, "free"))
