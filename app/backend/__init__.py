"""The Millrace backend: bearer keys in front, a streaming relay to LiteLLM behind."""
