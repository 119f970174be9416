"""Tests of app.storage.sqlite."""
