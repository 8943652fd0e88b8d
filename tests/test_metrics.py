import numpy as np
import pytest
import tensorflow as tf

from trainer import metrics


def picture(*rows):
    return tf.constant([rows], tf.uint8)


def test_psnr_worked_by_hand():
    """One of twelve values is off by 255: a mean square of 255**2 / 12."""
    truth = picture([[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]])
    predicted = picture([[255, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]])
    assert metrics.psnr(predicted, truth).numpy() == pytest.approx([10 * np.log10(12)])
    assert metrics.psnr(truth, truth).numpy() == pytest.approx([100])


def test_colorfulness_worked_by_hand():
    """Half red, half gray: rg is 255 and 0, yb 127.5 and 0; means 127.5 and 63.75, and deviations the same."""
    half = picture([[255, 0, 0], [128, 128, 128]])
    root = np.hypot(127.5, 63.75)
    assert metrics.colorfulness(half).numpy() == pytest.approx([1.3 * root])
    assert metrics.colorfulness(picture([[7, 7, 7], [200, 200, 200]])).numpy() == pytest.approx([0])
