"""Embedded storage: day files, written by one process, read by all."""
