"""Tests of app.logs."""
