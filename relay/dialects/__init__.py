"""Wire dialects: bytes of one provider API to and from the relay's own values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.dialects.openai_chat import OpenAIChat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.dialects.base import Dialect

DIALECTS: Mapping[str, Dialect] = {"openai": OpenAIChat()}
"""By the name that policies use."""
