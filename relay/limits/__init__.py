"""Pure limit arithmetic: (state, now, cost) -> (state, verdict)."""
