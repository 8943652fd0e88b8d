import contextlib
import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import example, tensors
from pipeline.errors import UserError
from pipeline.example import Example

# Stated in the module's table: Lab units.
STATED = {"full": {"l": 0.0123, "ab": 0.0313}, "compact": {"l": 0.197, "ab": 0.5001}}


def make(seed, **texts):
    generator = np.random.default_rng(seed)
    values = {name: generator.uniform(-1, 0.99, shape).astype(np.float32) for name, shape in tensors.SHAPES.items()}
    values["l_299"] = np.repeat(values["l_299"][..., :1], 3, axis=-1)
    return Example(**{"key": "images/a.jpg", "source": "images", "label": "", **texts}, tensors=values)


@pytest.mark.parametrize("layout", example.LAYOUTS.values(), ids=lambda layout: layout.name)
def test_round_trip_is_within_the_stated_error(layout):
    original = make(1)
    decoded = example.decode(example.encode(original, layout), layout)
    for name, values in original.tensors.items():
        error = np.abs(decoded.tensors[name] - values).max()
        unit, stated = (128, "ab") if name == "ab_224" else (50, "l")
        assert error <= layout.storage[name].error + 1e-6
        assert error * unit <= STATED[layout.name][stated]
        assert decoded.tensors[name].shape == values.shape
        assert decoded.tensors[name].dtype == np.float32


@settings(deadline=None, max_examples=200)
@given(values=hnp.arrays(np.float32, 1000, elements=st.floats(-1, 127 / 128, width=32)), data=st.data())
def test_every_value_survives_every_storage(values, data):
    layout = example.LAYOUTS[data.draw(st.sampled_from(sorted(example.LAYOUTS)))]
    storage = layout.storage[data.draw(st.sampled_from(sorted(tensors.SHAPES)))]
    small = dataclasses.replace(storage, shape=(10, 100, 1))
    decoded = small.decode(small.encode(values.reshape(10, 100, 1)), (10, 100, 1))
    assert np.abs(decoded.ravel() - values).max() <= storage.error + 1e-6


def test_gray_is_exact_in_both_layouts():
    for layout in example.LAYOUTS.values():
        storage = layout.storage["ab_224"]
        assert (storage.decode(storage.encode(np.zeros((224, 224, 2), np.float32)), (224, 224, 2)) == 0).all()


@given(st.text(), st.text(), st.text())
@settings(deadline=None, max_examples=20)
def test_texts_come_back(key, source, label):
    layout = example.LAYOUTS["compact"]
    decoded = example.decode(example.encode(make(1, key=key, source=source, label=label), layout), layout)
    assert (decoded.key, decoded.source, decoded.label) == (key, source, label)


@pytest.mark.parametrize("layout", example.LAYOUTS.values(), ids=lambda layout: layout.name)
def test_is_a_tensorflow_example(layout):
    original = make(2, label="/a/airfield")
    message = tf.train.Example.FromString(example.encode(original, layout))
    feature = message.features.feature
    assert set(feature) == {"key", "source", "label", "l_224", "l_299", "ab_224"}
    assert feature["label"].bytes_list.value[0] == b"/a/airfield"
    stored = np.frombuffer(feature["l_224"].bytes_list.value[0], layout.storage["l_224"].dtype)
    assert stored.size == 224 * 224


def test_sizes_are_those_of_the_table():
    sizes = {name: len(example.encode(make(3), layout)) for name, layout in example.LAYOUTS.items()}
    assert sizes["full"] == pytest.approx(837_000, rel=0.002)
    assert sizes["compact"] == pytest.approx(240_000, rel=0.002)


def test_equal_examples_give_equal_bytes():
    layout = example.LAYOUTS["full"]
    assert example.encode(make(4), layout) == example.encode(make(4), layout)


@pytest.mark.parametrize("record", [b"", b"\xff\xff", b"\n\x00"])
def test_what_is_no_example_is_refused(record):
    with pytest.raises(ValueError, match="not a record of layout 'full'"):
        example.decode(record, example.LAYOUTS["full"])


def test_a_record_of_another_layout_is_refused():
    record = example.encode(make(5), example.LAYOUTS["compact"])
    with pytest.raises(ValueError, match="not a record of layout 'full'"):
        example.decode(record, example.LAYOUTS["full"])


@given(st.binary(max_size=60))
def test_any_bytes_are_an_example_or_refused(record):
    with contextlib.suppress(ValueError):
        example.parse(record)


@given(st.data())
def test_what_protobuf_refuses_is_refused(data):
    """Of a record in which some bytes are others: nothing is read that is not there."""
    record = bytearray(example.serialize({"key": b"value", "long": bytes(200)}))
    for position in data.draw(st.lists(st.integers(0, len(record) - 1), min_size=1, max_size=3)):
        record[position] = data.draw(st.integers(0, 255))
    try:
        found = example.parse(bytes(record))
    except ValueError:
        return
    message = tf.train.Example.FromString(bytes(record))
    expected = {name: feature.bytes_list.value[0] for name, feature in message.features.feature.items()}
    assert {name: bytes(value) for name, value in found.items()} == expected


@pytest.mark.parametrize(
    "record",
    [b"\n" + b"\xff" * 1_000_000 + b"\x01", b"\x82\x00", b"\xfa\x00", b"\x12\x00", b"\n\x02\x12\x00", b"\n\x05a"],
)
def test_malformed_messages_are_refused_at_once(record):
    with pytest.raises(ValueError, match="no example of single byte strings"):
        example.parse(record)


def test_the_value_may_come_before_its_key():
    """As protobuf allows, though nobody writes so."""
    feature = b"\x0a\x03\x0a\x01v"
    entry = b"\x12" + bytes([len(feature)]) + feature + b"\x0a\x01k"
    features = b"\x0a" + bytes([len(entry)]) + entry
    record = b"\x0a" + bytes([len(features)]) + features
    assert tf.train.Example.FromString(record).features.feature["k"].bytes_list.value[0] == b"v"
    assert example.parse(record) == {"k": b"v"}


def test_unknown_layout_is_one_line():
    with pytest.raises(UserError, match="layout 'fulll' is unknown; choose one of full, compact"):
        example.layout("fulll")


@given(
    st.dictionaries(st.text(min_size=1, max_size=200), st.binary(max_size=300), max_size=6), st.integers(0, 3_000_000)
)
def test_bytes_are_those_of_protobuf(features, length):
    features["long"] = bytes(length)
    message = tf.train.Example()
    for name, value in features.items():
        message.features.feature[name].bytes_list.value.append(value)
    record = example.serialize(features)
    assert tf.train.Example.FromString(record) == message
    names = sorted(name.encode() for name in features)
    if not any(second.startswith(first) for first, second in itertools.pairwise(names)):
        # Where a name begins another, protobuf's C library puts the longer one first, and promises no order at all.
        assert record == message.SerializeToString(deterministic=True)
