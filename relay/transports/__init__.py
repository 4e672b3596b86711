"""Ways to reach an upstream, all behind `base.Transport`."""
