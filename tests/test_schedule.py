import pytest

from pipeline.errors import UserError
from trainer import schedule


def rates(learning_rates, epochs_per_rate, steps_per_epoch):
    rate = schedule.piecewise_constant(learning_rates, epochs_per_rate, steps_per_epoch)
    return [float(rate(step)) for step in range(schedule.epochs(learning_rates, epochs_per_rate) * steps_per_epoch)]


def test_each_rate_lasts_its_epochs_to_the_step():
    assert rates((1e-3, 1e-4), (2, 1), 3) == pytest.approx([1e-3] * 6 + [1e-4] * 3)
    assert rates((1.0, 0.5, 0.25), (1, 2, 1), 1) == [1.0, 0.5, 0.5, 0.25]
    assert rates((0.5,), (3,), 2) == [0.5] * 6


def test_the_report_s_recipe():
    assert schedule.epochs((1e-3, 1e-4), (10, 15)) == 25


@pytest.mark.parametrize(
    ("learning_rates", "epochs", "message"),
    [
        ((), (), "same length"),
        ((1e-3,), (1, 2), "same length"),
        ((1e-3, 0), (1, 2), "above 0"),
        ((1.0,), (0,), "above 0"),
    ],
)
def test_what_makes_no_schedule_is_refused(learning_rates, epochs, message):
    with pytest.raises(UserError, match=message):
        schedule.epochs(learning_rates, epochs)
