import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline import features


@given(
    st.text(min_size=1),
    st.integers(1, 5).flatmap(lambda n: arrays.arrays(np.float32, (2, n), elements=st.floats(-1e6, 1e6, width=32))),
)
def test_what_is_written_is_read(key, values):
    found, again = features.decode(features.encode(key, values), values.shape[1])
    assert found == key
    np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize("record", [b"", b"junk", features.encode("a", np.zeros((2, 4), np.float32))])
def test_other_records_are_refused(record):
    with pytest.raises(ValueError, match="not features of 3 classes"):
        features.decode(record, 3)


def test_features_are_finite():
    with pytest.raises(ValueError, match="features of a are not finite"):
        features.decode(features.encode("a", np.full((2, 3), np.nan, np.float32)), 3)


def test_a_sidecar_has_the_name_of_its_shard():
    name = features.sidecar_name("train-00003-of-00016.tfrecord", "89abcdef01234567")
    assert name == "train-00003-of-00016.89abcdef01234567.features"
    assert features.is_sidecar_name(name)
    assert not features.is_sidecar_name("train-00003-of-00016.tfrecord")
    assert not features.is_sidecar_name("mine-00000-of-00001.0123456789abcdef.features")
