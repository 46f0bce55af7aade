"""Which channels, heads and units of a model belong together: what is cut, or zeroed, as one."""
