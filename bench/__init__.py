"""Benchmarks that set Minutebook beside its peers in one run, on one private Postgres where there is one in it.

    python -m bench.append           events appended to the log, each acknowledged after its commit
    python -m bench.http             requests to the server, end to end, alone and with their commit
    python -m bench.rebuild          read models rebuilt from a log of a million events
    python -m bench.fanout           events to a room of websocket clients, and the opening of their connections

`make bench` runs these. For questions that it does not answer:

    python -m bench.slow_consumer    what clients that never read cost the others, beside the same peers
    python -m bench.end_to_end       from a message's POST to the frame at a listener
    python -m bench.replay_under_load  requests to the server while its read models are replayed
    python -m bench.workers          what a second worker is worth, also where the machine has too few cores to show it
    python -m bench.idle             10,000 registered connections held for five minutes

The machine's speed drifts from minute to minute, so the absolute figures say little. The contestants take turns in
short measurements (A B C, A B C, ...), and what counts is the ratio of ours to a peer's within one round: its median
over the rounds, shown with its extremes.
"""
