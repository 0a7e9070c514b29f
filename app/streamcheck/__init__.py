"""Walks a streaming chain, times every read at every hop, and names the hop that buffers."""
