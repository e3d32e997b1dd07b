"""Evaluate a run, or finish one."""
