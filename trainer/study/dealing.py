"""Which version of each picture a participant sees, and in which order."""

from typing import NamedTuple

import numpy as np


class Card(NamedTuple):
    """One picture that a participant is to see: its place in the study, and whether its colors are the model's."""

    picture: int
    predicted: bool


def deal(seed: int, number: int, count: int) -> list[Card]:
    """Deals a study's pictures to a participant.

    Each is there once, half of them predicted, in an order of the participant's own. Two in a row see opposite halves,
    so that after every second participant each picture was dealt as often real as predicted.

    Args:
        seed: of the study.
        number: of the participant, from 0.
        count: of the study's pictures.
    """
    pair, second = divmod(number, 2)
    generator = np.random.default_rng([seed, pair])
    predicted = generator.permutation(count) < count // 2
    orders = [generator.permutation(count), generator.permutation(count)]
    return [Card(int(picture), bool(predicted[picture] ^ second)) for picture in orders[second]]
