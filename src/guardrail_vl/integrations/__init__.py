"""Where a host's own shapes meet the guard: one module for each host, imported only by who uses it."""
