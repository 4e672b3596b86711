"""Relay: a slim OpenAI-compatible streaming relay."""

__version__ = "0.1.0"
