"""Tar shards in the WebDataset layout: read in place, and written."""
