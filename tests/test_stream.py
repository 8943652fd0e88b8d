import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream import Field, Stream
from tests.helpers import all_readers_end, readers

FIELDS = {"number": Field((), "int64"), "picture": Field((3, 5), "uint16")}


def row(number):
    return {"number": number, "picture": np.full((3, 5), number % 60_000, np.uint16)}


def rows(numbers):
    """Of a reader that uses its memory again, as those of files do."""
    memory = np.empty((3, 5), np.uint16)
    for number in numbers:
        memory[:] = number % 60_000
        yield {"number": number, "picture": memory}
        memory[:] = 65_535  # whoever looks later sees this


def taken(stream, count):
    """The numbers of the next batches, in whose rows all values belong together."""
    found = []
    for _ in range(count):
        batch = stream.take()
        np.testing.assert_array_equal(
            batch["picture"], np.broadcast_to(batch["number"][:, None, None], (len(batch["number"]), 3, 5))
        )
        found.append(batch["number"].tolist())
    return found


@settings(deadline=None)
@given(
    readers=st.integers(1, 5), size=st.integers(1, 7), batches=st.integers(0, 6), ahead=st.integers(1, 4),
    deterministic=st.booleans(),
)  # fmt: skip
def test_every_row_comes_once_and_in_turn(readers, size, batches, ahead, deterministic):
    total = size * batches * readers  # readers have equally many
    stream = Stream(
        [rows(range(first, total, readers)) for first in range(readers)], FIELDS, size, ahead, deterministic
    )
    found = list(itertools.chain(*taken(stream, batches * readers)))
    assert (found if deterministic else sorted(found)) == list(range(total))


def test_a_slow_reader_holds_nobody_up_without_determinism():
    released = threading.Event()

    def slow():
        released.wait(20)
        yield from rows(range(100, 104))

    stream = Stream([slow(), rows(range(4))], FIELDS, 2, 8, deterministic=False)
    assert sorted(itertools.chain(*taken(stream, 2))) == [0, 1, 2, 3]
    released.set()
    assert sorted(itertools.chain(*taken(stream, 2))) == [100, 101, 102, 103]


def test_no_more_is_read_ahead_than_asked_for():
    read = []

    def reader():
        for number in range(100):
            read.append(number)
            yield row(number)

    stream = Stream([reader()], FIELDS, 4, ahead=3)
    for expected in (13, 17):  # 3 batches, and the row that waits for room
        deadline = time.monotonic() + 10
        while len(read) < expected and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(read) == expected
        stream.take()
    stream.close()


def failing(numbers, message):
    yield from rows(numbers)
    raise ValueError(message)


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_reader_that_fails_is_heard_of_after_what_came_before(deterministic):
    stream = Stream([failing(range(5), "no more")], FIELDS, 2, 8, deterministic)
    assert taken(stream, 2) == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="no more"):
        stream.take()


def test_of_two_that_fail_the_first_in_turn_is_heard_of():
    """Whichever was the first in time."""
    late = threading.Event()

    def slow():
        yield from rows([0, 2, 4])
        late.wait(20)
        raise ValueError("first")

    stream = Stream([slow(), failing([1, 3, 5, 7, 9], "second")], FIELDS, 2, 8)
    assert taken(stream, 3) == [[0, 1], [2, 3], [4, 5]]
    late.set()
    with pytest.raises(ValueError, match="first"):
        stream.take()


def test_a_row_that_lacks_a_field_is_heard_of():
    stream = Stream([iter([{"number": 1}])], FIELDS, 1, 1)
    with pytest.raises(KeyError, match="picture"):
        stream.take()


@pytest.mark.parametrize("deterministic", [True, False])
def test_where_copying_a_row_fails_nobody_waits_for_it(deterministic):
    """Others have rows of batches that come after it, and wait for room."""
    broken = [{"number": 1}, *rows(range(9))]
    stream = Stream([iter(broken), *(rows(range(9)) for _ in range(3))], FIELDS, 1, 1, deterministic)
    with pytest.raises(KeyError, match="picture"):
        taken(stream, 30)
    assert all_readers_end()


def test_closing_wakes_who_waits():
    released = threading.Event()

    def hanging():
        released.wait(20)
        yield row(0)

    stream = Stream([hanging()], FIELDS, 1, 1)
    threading.Timer(0.2, lambda: (released.set(), stream.close())).start()
    with pytest.raises(RuntimeError, match="the stream is closed"):
        taken(stream, 2)


def test_readers_that_end_early_are_heard_of():
    stream = Stream([rows([0, 2]), rows([1])], FIELDS, 2, 2)
    with pytest.raises(EOFError, match="the readers ended before batch 1 was full"):
        taken(stream, 2)


def test_memory_that_nobody_refers_to_is_used_again_and_no_other():
    stream = Stream([rows(range(400))], FIELDS, 2, ahead=2)
    kept = [stream.take()["picture"][1:] for _ in range(5)]  # views, of which each holds its batch
    addresses = set()
    for _ in range(150):
        addresses.add(stream.take()["picture"].ctypes.data)
    assert len(addresses) <= 6
    assert all(address % 64 == 0 for address in addresses)
    assert [int(each[0, 0, 0]) for each in kept] == [1, 3, 5, 7, 9]
    stream.close()


def test_closing_ends_the_readers():
    assert all_readers_end()
    stream = Stream([rows(itertools.count()), rows(itertools.count())], FIELDS, 2, 2)
    stream.take()
    assert len(readers()) == 2
    stream.close()
    assert all_readers_end()
