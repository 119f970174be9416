"""HTTP and nothing else: the hot path, authentication, limits, problems."""
