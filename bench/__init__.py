"""Benchmarks that set Minutebook beside its peers, on one private Postgres in one run.

    python -m bench.append     events appended to the log, each acknowledged after its commit
    python -m bench.http       requests to the server, end to end
    python -m bench.rebuild    read models rebuilt from a log of a million events

The machine's speed drifts from minute to minute, so the absolute figures say little. The contestants take turns in
short measurements (A B C, A B C, ...), and what counts is the ratio of ours to a peer's within one round: its median
over the rounds, shown with its extremes.
"""
