"""Whole networks: backbone, attention and head put together."""
