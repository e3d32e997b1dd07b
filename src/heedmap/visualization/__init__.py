"""Heatmaps, charts and what a notebook shows; knows no model."""
