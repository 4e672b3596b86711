"""Places to keep what keys have used, all behind `base.Store`."""
