"""Metrics and structured log events."""
