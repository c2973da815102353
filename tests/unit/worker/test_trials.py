"""Finding the request that kills engines: whatever the guilty one, it alone is found, and soon."""

from hypothesis import given
from hypothesis import strategies as st

from worker.trials import Trials, halves


def tried(suspects: list[str], guilty: set[str]) -> tuple[set[str], set[str], int]:
    """Who is condemned, who is cleared, and how many engines died, if these kill any engine they are in."""
    trials = Trials(suspects)
    condemned: set[str] = set()
    cleared: set[str] = set()
    deaths = 0
    while group := trials.group:
        if guilty & set(group):
            deaths += 1
            if found := trials.died():
                condemned.add(found)
        else:
            cleared |= set(group)
            for each in group:
                trials.settled(each)
    return condemned, cleared, deaths


@given(st.integers(1, 64), st.data())
def test_the_guilty_and_they_alone_are_condemned(count: int, data: st.DataObject) -> None:
    suspects = [f"r{number}" for number in range(count)]
    guilty = set(data.draw(st.lists(st.sampled_from(suspects), unique=True)))
    condemned, cleared, deaths = tried(suspects, guilty)
    assert condemned == guilty
    assert cleared == set(suspects) - guilty
    assert deaths <= len(guilty) * (count.bit_length() + 2)


def test_one_death_alone_may_be_a_coincidence() -> None:
    trials = Trials(["a"])
    assert trials.died() is None
    assert trials.group == ("a",)
    trials.settled("a")
    assert trials.group == ()


def test_who_is_not_wanted_any_more_is_not_tried() -> None:
    trials = Trials(["a", "b", "c"])
    for gone in ("a", "b"):
        trials.settled(gone)
    assert trials.group == ("c",)


def test_halves() -> None:
    assert halves([1, 2, 3]) == [[1, 2], [3]]
    assert halves([1]) == [[1]]
