"""Estimates pi with random points, on several processors: how a tool works with processes of its own."""

import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from shared import toolkit

BATCHES = 8


def pi_estimate(points: int = 1_000_000, processes: int = 2) -> dict[str, Any]:
    """Count how many of `points` random points in a square lie in the circle within.

    With a seed, the result is the same for any number of processes.

    Args:
        points: Number of points.
        processes: Number of processes that count.

    Returns:
        The estimate of pi and the number of points that it is based on.
    """
    if points < 1 or processes < 1:
        raise ValueError(f"points is {points} and processes is {processes}: each must be at least 1")

    sizes = batches(points)
    seeds = [random.getrandbits(64) for _ in sizes]
    inside = 0
    # Each process is a fresh interpreter, which imports this file for itself.  Threads don't disturb that.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = [pool.submit(count_inside, size, seed) for size, seed in zip(sizes, seeds, strict=True)]
        for number, done in enumerate(as_completed(waiting), start=1):
            inside += done.result()
            toolkit.progress(number, len(waiting), f"{inside} points inside")

    toolkit.metric("points", points)
    return {"pi": 4 * inside / points, "points": points}


def batches(points: int) -> list[int]:
    """Split the points into batches of about the same size, independent of the number of processes."""
    count = min(points, BATCHES)
    return [points // count + (number < points % count) for number in range(count)]


def count_inside(points: int, seed: int) -> int:
    """The number of random points within the circle; called in the other processes."""
    generator = random.Random(seed)  # noqa: S311
    return sum(generator.random() ** 2 + generator.random() ** 2 <= 1 for _ in range(points))
