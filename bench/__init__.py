"""Measurements beside peers, one module per question. `python -m bench` runs them all, `python -m bench NAME` one.

Every figure is the median of several rounds, in which Gateway and its peer take turns on the same machine; what counts
is their ratio. bench/micro holds micro-benchmarks for pytest-benchmark.
"""
