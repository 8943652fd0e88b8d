from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.study.dealing import deal


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 50), st.integers(1, 12))
def test_half_are_predicted_and_all_versions_are_dealt_as_often(seed, count, pairs):
    dealt = Counter()
    for number in range(2 * pairs):
        cards = deal(seed, number, count)
        assert sorted(card.picture for card in cards) == list(range(count))
        assert sum(card.predicted for card in cards) in (count // 2, -(-count // 2))
        dealt.update(cards)
    assert set(dealt.values()) == {pairs}
    assert len(dealt) == 2 * count


def test_orders_and_halves_are_each_participants_own_and_chance():
    """No place in the order, and no picture, tells whether colors are real."""
    hands = [deal(5, number, 20) for number in range(400)]
    assert len({tuple(card.picture for card in hand) for hand in hands}) == 400
    assert len({frozenset(hand) for hand in hands}) == 400
    for place in range(20):
        assert 150 < sum(hand[place].predicted for hand in hands) < 250  # 5 standard deviations
        assert len({hand[place].picture for hand in hands}) == 20
    together = sum(dict(hand)[0] == dict(hand)[1] for hand in hands)
    assert 150 < together * 19 / 18 < 250  # one picture says nothing of another, but that half are predicted


def test_the_same_for_the_same_seed_only():
    assert deal(3, 8, 30) == deal(3, 8, 30)
    assert deal(3, 8, 30) != deal(4, 8, 30)
