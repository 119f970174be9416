"""Tests of how a key gets to its owner."""
