"""What is compared: the figures, what they must reach, and how the rival's are carried to 1,000.

Pure: numbers in, rows out. How they are measured is in `measure`, how they are shown in `report`
and `plot`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: All results of a run: by contender, measurement and number of workers.
Results = Mapping[tuple[str, str, int], Sequence[Mapping[str, float]]]


@dataclass(frozen=True)
class Value:
    """One number of one contender.

    Parameters
    ----------
    number : float
        The number.
    note : str
        What must be known of it, for example that it is a model's.
    """

    number: float
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Parameters
    ----------
    title : str
        What is measured.
    unit : str
        ``"s"``, ``"ms"``, ``"bytes"`` or ``""`` for a count.
    rival, floor, ours : Value or None
        What was measured; None if there is no such thing.
    limit : float or None
        What ours must not exceed; None promises nothing.
    times_floor : float or None
        The limit in floors, where it is one.
    """

    title: str
    unit: str
    rival: Value | None
    floor: Value | None
    ours: Value
    limit: float | None = None
    times_floor: float | None = None

    @property
    def bound(self) -> float | None:
        """What ours must not exceed."""
        if self.times_floor is not None and self.floor is not None:
            return self.times_floor * self.floor.number
        return self.limit

    @property
    def reached(self) -> bool | None:
        """Whether the promise is kept; None if there is none."""
        return None if self.bound is None else self.ours.number <= self.bound

    @property
    def over_floor(self) -> float | None:
        """Ours as a multiple of the floor."""
        return _ratio(self.ours, self.floor)

    @property
    def better_than_rival(self) -> float | None:
        """The rival's as a multiple of ours."""
        return _ratio(self.rival, self.ours)


def _ratio(above: Value | None, below: Value | None) -> float | None:
    if above is None or below is None or not below.number:
        return None
    return above.number / below.number


def median(results: Sequence[Mapping[str, float]], key: str) -> float:
    """Return the median of one number over several runs."""
    return statistics.median(result[key] for result in results)


def extrapolate(small: tuple[int, float], large: tuple[int, float], workers: int) -> float:
    """Carry a number on along the straight line through two measurements.

    Parameters
    ----------
    small, large : tuple of int and float
        Workers and number of the two.
    workers : int
        Where to.

    Returns
    -------
    float
        The number there.

    Examples
    --------
    >>> extrapolate((100, 30.0), (300, 80.0), 1000)
    255.0
    """
    (first, at_first), (second, at_second) = small, large
    return at_second + (workers - second) * (at_second - at_first) / (second - first)


def build_figures(results: Results, workers: int, sizes: tuple[int, int]) -> list[Figure]:
    """Return the table.

    Parameters
    ----------
    results : mapping
        All results of a run.
    workers : int
        How many workers ours and the floor had.
    sizes : tuple of int
        The two numbers of workers that the rival had instead.

    Returns
    -------
    list of Figure
        Its rows.
    """

    def of(contender: str, measurement: str, size: int, key: str, note: str = "") -> Value:
        return Value(median(results[contender, measurement, size], key), note)

    def model(key: str) -> Value:
        small, large = (of("rival", "many", size, key).number for size in sizes)
        return Value(extrapolate((sizes[0], small), (sizes[1], large), workers), "model")

    small, large = sizes
    at_large = f"at {large}"
    many = f"{workers:,}"
    return [
        Figure(
            "first result of 1 real worker",
            "s",
            of("rival", "first", 1, "seconds"),
            of("floor", "first", 1, "seconds"),
            of("ours", "first", 1, "seconds"),
            times_floor=1.1,
        ),
        Figure(
            f"all of {many} known to be RUNNING",
            "s",
            model("known"),
            of("floor", "many", workers, "known"),
            of("ours", "many", workers, "known"),
            times_floor=1.2,
        ),
        Figure(
            "API calls for that",
            "",
            model("calls"),
            of("floor", "many", workers, "calls"),
            of("ours", "many", workers, "calls"),
            limit=15,
        ),
        Figure(
            f"longest stall of the event loop while {many} start",
            "ms",
            of("rival", "many", large, "stall starting", at_large),
            None,
            of("ours", "many", workers, "stall starting"),
            limit=25,
        ),
        Figure(
            f"longest stall of the event loop while {many} are closed",
            "ms",
            of("rival", "many", large, "stall closing", at_large),
            None,
            of("ours", "many", workers, "stall closing"),
            limit=25,
        ),
        Figure(
            f"close {many}",
            "s",
            model("closed"),
            of("floor", "many", workers, "closed"),
            of("ours", "many", workers, "closed"),
            times_floor=1.2,
        ),
        Figure(
            "of 400 scattered results, lost in scaling 40 workers to 10",
            "",
            of("rival", "lost", 40, "lost"),
            Value(0),
            of("ours", "lost", 40, "lost"),
            limit=0,
        ),
        Figure(
            "first call after scale() while machines boot",
            "s",
            of("rival", "acting", 10, "seconds"),
            None,
            of("ours", "acting", 10, "seconds"),
            limit=0.2,
        ),
        Figure(
            "client memory per worker",
            "bytes",
            of("rival", "memory", small, "bytes", f"at {small}"),
            None,
            of("ours", "memory", workers, "bytes"),
            limit=5000,
        ),
        Figure(
            f"{many} real workers have joined",
            "s",
            None,
            None,
            of("ours", "joined", workers, "joined"),
        ),
        Figure(
            "longest stall of the event loop meanwhile",
            "ms",
            None,
            None,
            of("ours", "joined", workers, "stall"),
        ),
    ]
