"""The version, for whoever writes it into a file: nothing else is imported for it."""

__version__ = "0.1.0"
