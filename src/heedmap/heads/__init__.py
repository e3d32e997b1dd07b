"""Heads: from what attention read to logits."""
