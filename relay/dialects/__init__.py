"""Wire dialects: bytes of one provider API to and from the relay's own values."""
