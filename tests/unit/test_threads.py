"""The same work in several threads: each item once, and an end when one fails."""

from __future__ import annotations

import threading

import pytest

from atoll import threads


def test_each_item_is_taken_once_by_all_threads_together():
    taken = []
    both = threading.Barrier(2, timeout=60)

    def work(items):
        for item in items:
            if item < 2:
                both.wait()  # passes only if two threads work at once
            taken.append(item)

    threads.share(work, iter(range(1000)), threads=2)
    assert sorted(taken) == list(range(1000))


def test_the_first_failure_ends_the_others_and_is_raised_once_all_have_ended():
    def work(items):
        for item in items:
            if item == 10:
                raise ValueError("ten")

    before = threading.active_count()
    numbers = iter(range(10**9))
    with pytest.raises(ValueError, match="ten"):
        threads.share(work, numbers, threads=4)
    assert threading.active_count() == before
    assert next(numbers) < 10**6


def test_items_that_cannot_be_made_fail_like_work():
    def items():
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        threads.share(list, items(), threads=3)


def test_one_thread_is_enough():
    taken = []
    threads.share(taken.extend, range(5), threads=1)
    assert taken == [0, 1, 2, 3, 4]


def test_what_is_made_in_order_takes_only_a_few_items_ahead():
    taken = []

    def items():
        for number in range(10_000):
            taken.append(number)
            yield number

    with threads.in_order(str, items()) as made:
        first = [next(made) for _ in range(3)]
        assert len(taken) < 100
    assert first == ["0", "1", "2"]
