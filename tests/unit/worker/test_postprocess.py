"""Text to answer: the markers that the seeds name, in every order."""

import pytest

from jobs.settings import END_MARKERS
from worker.postprocess import answer, whole_characters


@pytest.mark.parametrize(
    "marker", ["<|im_end|>", "<eoa>", "</s>", "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"]
)
def test_everything_from_the_first_marker_on_is_cut(marker: str) -> None:
    assert answer(f" 总结 text.{marker} more {marker}</s>", END_MARKERS) == "总结 text."


def test_the_earliest_marker_wins() -> None:
    assert answer("a</s>b<|im_end|>", END_MARKERS) == "a"
    assert answer("a STOP b</s>", (*END_MARKERS, "STOP")) == "a"


def test_white_space_stays_where_it_is_wanted() -> None:
    assert answer(" a \n", END_MARKERS) == "a"
    assert answer(" a \n</s>", END_MARKERS, trim=False) == " a \n"
    assert answer("plain", ()) == "plain"


def test_a_character_cut_in_two_is_dropped() -> None:
    cut = "二十厘".encode()[:-1].decode(errors="replace")
    assert whole_characters(cut) == "二十"
    assert whole_characters("a\ufffdb") == "a\ufffdb"
