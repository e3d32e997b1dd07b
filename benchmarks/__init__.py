"""Speed, measured: `make bench`, or `python -m benchmarks PART ...`."""
