"""Sharing a worker, and having it alone."""

import threading

import pytest

from worker.errors import HandedBackError
from worker.floor import Floor


def nothing() -> None: ...


def give_up() -> None:
    raise HandedBackError("draining")


def test_many_share_it_and_nobody_joins_who_has_it_alone() -> None:
    floor = Floor()
    with floor.shared(nothing), floor.shared(nothing), pytest.raises(HandedBackError), floor.alone(give_up):
        pass
    with floor.alone(nothing):
        with pytest.raises(HandedBackError), floor.shared(give_up):
            pass
        with pytest.raises(HandedBackError), floor.alone(give_up):
            pass
    with floor.shared(nothing):
        pass


def test_who_waits_to_have_it_alone_goes_before_who_would_share_it() -> None:
    floor = Floor()
    order: list[str] = []
    waits = threading.Event()

    def alone() -> None:
        with floor.alone(waits.set):
            order.append("alone")

    def share() -> None:
        with floor.shared(nothing):
            order.append("shared")

    with floor.shared(nothing):
        first = threading.Thread(target=alone)
        first.start()
        assert waits.wait(10)
        second = threading.Thread(target=share)
        second.start()
    first.join(10)
    second.join(10)
    assert order == ["alone", "shared"]
