"""Tests of the load generation."""
