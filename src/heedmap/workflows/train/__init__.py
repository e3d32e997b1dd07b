"""From options to a finished run."""
