"""Reading ahead: the same pieces in the same order, a few early, none that nobody wants."""

from __future__ import annotations

import threading

import pytest

from scatterdp.training.ahead import read_ahead


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("ahead", [0, 1, 3, 9])
def test_pieces_come_in_order(count: int, ahead: int):
    calls: list[int] = []

    def read(number: int) -> int:
        calls.append(number)
        return number * number

    assert list(read_ahead(read, count, ahead=ahead)) == [number * number for number in range(count)]
    assert calls == list(range(count))


def test_so_many_are_read_while_one_is_in_work():
    begun = [threading.Event() for _ in range(5)]
    pieces = read_ahead(lambda number: begun[number].set(), 5, ahead=2)
    next(pieces)
    assert begun[2].wait(10)
    assert not begun[3].wait(0.2)
    next(pieces)
    assert begun[3].wait(10)
    pieces.close()


def test_an_error_comes_where_its_piece_would():
    def read(number: int) -> int:
        if number == 1:
            raise OSError("gone")
        return number

    pieces = read_ahead(read, 3, ahead=2)
    assert next(pieces) == 0
    with pytest.raises(OSError, match="gone"):
        next(pieces)


def test_nothing_more_is_read_for_one_who_stops():
    calls: list[int] = []
    pieces = read_ahead(calls.append, 100, ahead=1)
    next(pieces)
    pieces.close()
    assert calls in ([0], [0, 1])
