"""Rounds: the contestants' samples case by case, and the ratios within each round."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median

from bench.load import Sample, median_of

OURS = "Minutebook"


@dataclass(frozen=True)
class Ratio:
    """How many times a peer's figure ours is: the median of the rounds' ratios, and the extremes."""

    median: float
    low: float
    high: float


class Results:
    """All samples, by case (64 callers, an endpoint, ...) and contestant, in the order of the rounds.

    Every contestant of a case is measured once in each round, so samples of one index belong together. The first
    one to be measured in a case is ours, with which the others are compared.
    """

    def __init__(self) -> None:
        self._samples: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))

    def add(self, case: str, contestant: str, sample: Sample) -> None:
        """Keeps the sample of the next round."""
        self._samples[case][contestant].append(sample)

    def cases(self) -> list[str]:
        """The cases, in the order in which they were first measured."""
        return list(self._samples)

    def contestants(self, case: str) -> list[str]:
        """Who took part in a case, in the order of the first round: ours, then its peers."""
        return list(self._samples[case])

    def samples(self, case: str, contestant: str) -> list[Sample]:
        """A contestant's samples, round by round."""
        return list(self._samples[case][contestant])

    def median(self, case: str, contestant: str) -> Sample:
        """The medians of a contestant's figures."""
        return median_of(self._samples[case][contestant])

    def ratio(self, case: str, peer: str, figure: str = "rate") -> Ratio | None:
        """Our rate, or another figure, to the peer's; None if the peer is ours, or a figure is missing."""
        ours, *peers = self._samples[case]
        if peer not in peers:
            return None
        pairs = zip(self._samples[case][ours], self._samples[case][peer], strict=True)
        figures = [(getattr(mine, figure), getattr(theirs, figure)) for mine, theirs in pairs]
        if not all(each for pair in figures for each in pair):
            return None
        ratios = [mine / theirs for mine, theirs in figures]
        return Ratio(median(ratios), min(ratios), max(ratios))


def verdict(ratio: float, goal: float, *, at_most: bool = False) -> str:
    """How a ratio stands to its goal: at least so much, or at most."""
    met = ratio <= goal if at_most else ratio >= goal
    return f"{'at most ' if at_most else ''}{goal:g}x: {'met' if met else 'NOT MET'}"
