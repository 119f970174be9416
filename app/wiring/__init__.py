"""The parts of a running service, opened from settings; app/main.py says in which order."""
