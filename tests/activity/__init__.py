"""Tests of app.activity."""
