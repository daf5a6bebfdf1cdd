"""A command of the command line, where a module has several of them."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

__all__ = ["Part", "running"]

T = TypeVar("T")


class Part(NamedTuple):
    """One command: what adds its arguments, and what does it and returns the exit status."""

    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def running(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end on an event loop of its own."""
    return asyncio.run(work)
