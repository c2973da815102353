"""The sizes of recorded decode steps."""

from model.devices.ladder import rung


def test_the_ladder_of_recorded_sizes() -> None:
    assert sorted({rung(rows, 200) for rows in range(1, 201)}) == [
        1,
        2,
        4,
        8,
        16,
        24,
        32,
        48,
        64,
        96,
        128,
        192,
        200,
    ]
    assert all(rows <= rung(rows, 200) for rows in range(1, 201))
