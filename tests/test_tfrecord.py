import io

import google_crc32c
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tfrecord

RECORDS = st.lists(st.binary(max_size=200), max_size=8)


def written(records):
    file = io.BytesIO()
    writer = tfrecord.Writer(file)
    for record in records:
        writer.write(record)
    return writer, file.getvalue()


@settings(deadline=None)
@given(RECORDS)
def test_tensorflow_reads_what_is_written(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("records") / "file"
    path.write_bytes(written(records)[1])
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(path))] == records


@settings(deadline=None)
@given(RECORDS)
def test_reads_what_tensorflow_writes(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("records") / "file"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    assert list(tfrecord.read(io.BytesIO(path.read_bytes()))) == records


@given(RECORDS)
def test_writer_knows_counts_and_checksum(records):
    writer, data = written(records)
    assert (writer.records, writer.bytes) == (len(records), len(data))
    assert writer.crc32c == google_crc32c.value(data) == tfrecord.checksum(io.BytesIO(data))


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4), st.data())
def test_any_flipped_bit_is_found(records, data):
    _, content = written(records)
    damaged = bytearray(content)
    position = data.draw(st.integers(0, len(content) - 1))
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match=r"(damaged record|ends within a record).* at byte \d+"):
        list(tfrecord.read(io.BytesIO(bytes(damaged))))


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4), st.data())
def test_any_cut_within_a_record_is_found(records, data):
    _, content = written(records)
    ends, end = {0}, 0
    for record in records:
        end += len(record) + tfrecord.OVERHEAD_BYTES
        ends.add(end)
    cut = data.draw(st.integers(0, len(content) - 1).filter(lambda position: position not in ends))
    with pytest.raises(ValueError, match=r"ends within a record at byte \d+"):
        list(tfrecord.read(io.BytesIO(content[:cut])))


@given(st.lists(st.binary(max_size=40), max_size=12), st.data())
def test_some_records_are_picked(records, data):
    indices = sorted(data.draw(st.sets(st.integers(0, 11))))
    file = io.BytesIO(written(records)[1])
    expected = [records[index] for index in indices if index < len(records)]
    if all(index < len(records) for index in indices):
        assert list(tfrecord.pick(file, indices)) == expected
    else:
        with pytest.raises(ValueError, match=r"ends at byte \d+, where another record is due"):
            list(tfrecord.pick(file, indices))


def test_a_picked_record_that_is_damaged_is_named():
    data = bytearray(written([b"first", b"second", b"third"])[1])
    data[tfrecord.OVERHEAD_BYTES + 5 + 13] ^= 1
    with pytest.raises(ValueError, match="damaged record at byte 21"):
        list(tfrecord.pick(io.BytesIO(bytes(data)), [1]))


@pytest.mark.parametrize("length", [1 << 40, (1 << 64) - 1])
def test_a_length_that_cannot_be_is_refused(length):
    """With the checksum that belongs to it."""
    head = length.to_bytes(8, "little")
    crc = google_crc32c.value(head)
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    data = head + masked.to_bytes(4, "little") + b"content"
    for use in (lambda file: list(tfrecord.read(file)), lambda file: tfrecord.skip(file, 1)):
        with pytest.raises(ValueError, match=f"a record of {length} bytes at byte 0"):
            use(io.BytesIO(data))
