"""Measurements beside peers, one module per question. `python -m bench` runs them all, `python -m bench NAME` one.

Every figure is the median of several rounds, in which Gateway and its peer take turns on the same machine; what counts
is their ratio. bench/micro holds micro-benchmarks for pytest-benchmark.

Run from the root of the tree, on the disk that is to be measured and on a machine that does nothing else. With five
rounds the log's take: log_throughput 16 minutes, log_small_records 6, log_latency 8, log_amplification 14 (at most
three rounds), log_many_streams 10, log_startup 8; mqtt_costs takes 20. `--quick` cuts each to about a minute: a look at
whether it works, no figures.

    load.pyx    the native producer; native.py builds it when it is first wanted
    publishers.pyx  native publishers with windows and latencies; flood.pyx: without acknowledgements; built likewise
    recorder    a writer with its threads, and their CPU
    disk        fio, the device's counters, the page cache
"""
