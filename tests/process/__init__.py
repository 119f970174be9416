"""Tests of the whole service, as processes of its own."""
