import numpy as np
import pytest

from pipeline import color_counts, reader
from pipeline.color_counts import NONE, SIDE, Counter
from pipeline.shards import SPLITS


def counted(*pictures):
    counter = Counter()
    for lab in pictures:
        counter.add(np.asarray(lab, np.float32) / 128)
    return counter.result()


def test_one_color():
    found = counted(np.full((8, 12, 2), (27.0, -34.0)))
    assert found.pixels == 2 * 3  # every fourth row and column
    assert found.mean == pytest.approx((27.0, -34.0))
    assert found.bins[SIDE * (11 + 3) + (11 - 3)] == 6  # nearest to 30 and -30
    assert sum(found.bins) == 6


def test_colors_of_the_border_and_beyond():
    lab = np.array([(110, -110), (114.9, 0), (127, -128), (4.9, -4.9)])
    expected = [SIDE * 22 + 0, SIDE * 22 + 11, SIDE * 22 + 0, SIDE * 11 + 11]
    assert color_counts.bins(lab).tolist() == expected


def test_counts_of_parts_add_up():
    pictures = np.random.default_rng(0).uniform(-90, 90, (5, 20, 24, 2))
    whole, parts = counted(*pictures), [counted(*pictures[:2]), counted(*pictures[2:])]
    total = sum(parts, NONE)
    assert (total.pixels, total.bins) == (whole.pixels, whole.bins)
    assert total.mean == pytest.approx(whole.mean)
    assert total.mean == pytest.approx(pictures[:, ::4, ::4].mean(axis=(0, 1, 2)))


def test_nothing_is_gray():
    assert NONE.mean == (0.0, 0.0)


def test_the_manifest_counts_what_was_written(datasets):
    """The statistics of a dataset's splits are those of its examples, but for the rounding of how these are stored."""
    for layout, dataset in datasets.items():
        for split in SPLITS:
            counter = Counter()
            for example in reader.examples(dataset, split):
                counter.add(example.tensors["ab_224"])
            expected, found = counter.result(), dataset.manifest.splits[split].colors
            assert found.pixels == expected.pixels > 0
            assert found.mean == pytest.approx(expected.mean, abs=0.05)
            moved = np.abs(np.subtract(found.bins, expected.bins)).sum() / found.pixels
            assert moved < {"full": 0.01, "compact": 0.15}[layout]
