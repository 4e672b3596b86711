"""Measures what Relay costs: its own mock upstream and load generator, nginx as the yardstick, peers on demand.

`docs/performance.md` says what is measured and how; `make bench` runs it.
"""
