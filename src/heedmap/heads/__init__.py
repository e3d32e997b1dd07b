"""Heads: from what attention read to the answer."""
