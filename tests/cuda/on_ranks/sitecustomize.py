"""Has the ranks that a test starts find the stand-in for a GPU, as the test itself does."""

from tests.cuda import card

card.simulate(setattr)
