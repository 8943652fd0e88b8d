import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from trainer.ahead import map_ahead


def test_results_come_in_order_and_items_are_taken_as_far_ahead_as_asked():
    taken = []

    def items():
        for number in range(10):
            taken.append(number)
            yield number

    first_may_end = threading.Event()

    def square(number):
        if number == 0:
            assert first_may_end.wait(10)
        return number**2

    with ThreadPoolExecutor(4) as pool:
        results = map_ahead(pool, square, items(), 3)
        threading.Timer(0.1, first_may_end.set).start()
        assert next(results) == 0
        assert taken == [0, 1, 2, 3]
        assert list(results) == [number**2 for number in range(1, 10)]


def test_what_fails_fails_in_its_turn():
    def invert(number):
        return 1 / number

    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, invert, [2, 1, 0, 4], 2)
        assert next(results) == 0.5
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)
