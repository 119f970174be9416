"""Tests of app.keys."""
