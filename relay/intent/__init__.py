"""What a request is for: one of twelve intents, and how sure that is.

A linear model (`model`) over short pieces of the prompt (`features`), whose weights scripts/train_intent.py fits.
"""

from relay.intent.model import LABELS, classify, spoken

__all__ = ["LABELS", "classify", "spoken"]
