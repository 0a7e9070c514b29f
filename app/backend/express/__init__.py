"""The express lane: the backend lets a request in and nginx fetches the answer from the engine."""
