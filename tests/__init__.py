"""Tests, mirroring the tree that they test."""
