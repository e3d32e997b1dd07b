"""What runs in a browser or answers over HTTP."""
