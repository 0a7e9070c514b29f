"""A stand-in for Cloudflare's edge: a proxy that does to a stream what their documentation says.

Visitors come by TLS with HTTP/1.1 or HTTP/2; the origin is asked by HTTP/2, many streams in one
connection, with a client certificate. `behaviour.py` holds every switch, and what a setting of a
zone would do to a stream when it is wrong.
"""
