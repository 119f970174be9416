"""Clients, their keys, and who a key is."""
