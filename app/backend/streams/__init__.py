"""Chat streams that outlive a connection: made once, read by whoever comes back for them.

    routes.py → start.py → generation.py → parser.py → buffer.py → reading.py
    HTTP        the POST   the relay's      bytes to    bounded,    EventSource,
                           client           events      numbered    long poll

`registry.py` knows the streams of this process and ends those that nobody reads; `tickets.py` lets
a native EventSource in, which can send no key; `peers.py` passes on what is asked about a stream of
the other instance; `store.py` and `redis_store.py` keep streams beyond their process.
"""
