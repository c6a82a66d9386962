"""How fast, beside its raw floor, in the same run. `python -m benchmarks --help`."""
