"""What a voice has to choose next, on time, late, early and lost."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from wan_streamer.training.voice.place import LATEST, Place

SOUNDS = [0, 0, 5, 5, 6, 7, 7, 7, 8, 0, 0, 9, 9, 3, 2, 1]


def place(first: int = 2) -> Place:
    return Place(torch.tensor([SOUNDS]), first)


def chosen(said: list[int], first: int = 2) -> list[int]:
    """What is due in each tick of a row that says this."""
    at, due = place(first), []
    for tick, sound in enumerate(said, start=first):
        due.append(int(at.due(tick)))
        at.says(torch.tensor([sound]))
    return due


def test_on_time_what_is_true_is_due() -> None:
    assert chosen(SOUNDS[2:]) == SOUNDS[2:]


def test_late_the_next_is_due_until_it_is_on_time() -> None:
    said = [0, 0, 5, 6, 7, 7]
    assert chosen(said) == [5, 5, 5, 6, 7, 7]
    assert chosen([0, 0, 5, 6, 7, 7, 8, 0]) == [5, 5, 5, 6, 7, 7, 8, 0]


def test_early_it_says_on_what_it_says() -> None:
    assert chosen([5, 6, 7, 8, 8, 8, 8]) == [5, 5, 6, 7, 8, 8, 8]


def test_another_sound_leads_nowhere_and_one_left_out_is_gone() -> None:
    assert chosen([5, 20, 6, 7]) == [5, 5, 6, 7]
    assert chosen([5, 20, 20, 6]) == [5, 5, 6, 6]
    assert chosen([5, 5, 7, 7, 7, 7, 8]) == [5, 5, 6, 7, 7, 7, 8]


def test_who_is_too_late_leaves_out() -> None:
    assert LATEST == 3
    assert chosen([20] * 14) == [5] * 6 + [8] * 5 + [3] * 3


@given(st.lists(st.integers(-1, 9), min_size=14, max_size=14))
def test_rows_do_not_disturb_each_other(said: list[int]) -> None:
    both = Place(torch.tensor([SOUNDS, SOUNDS[::-1]]), 2)
    one, two = place(), Place(torch.tensor([SOUNDS[::-1]]), 2)
    for tick, sound in enumerate(said, start=2):
        assert both.due(tick).tolist() == [int(one.due(tick)), int(two.due(tick))]
        for at in (both, one, two):
            at.says(torch.full((len(at.said_R),), sound))
