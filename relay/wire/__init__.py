"""Sans-IO parsers and encoders with bounded buffers."""
