"""Caches between runs: decoded images, and which files were verified."""
