"""The inspection of a log: whether its rows, its tree and its guards are what they were when it was written."""
