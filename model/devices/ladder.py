"""Which sizes of decode steps are recorded: few, so that each step is one of them with little to fill up."""


def rung(rows: int, most: int) -> int:
    """The recorded size that serves so many rows: 1, 2, 4, 8, then powers of two and what lies half-way."""
    power = 1 << (rows - 1).bit_length()
    halfway = power * 3 // 4
    return min(halfway if rows <= halfway and power > 16 else power, most)
