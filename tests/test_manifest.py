import json

import pytest

from pipeline.errors import UserError
from pipeline.image import ResizeMode
from pipeline.manifest import Manifest, ShardInfo, SplitInfo

MANIFEST = Manifest(
    layout="compact",
    resize_mode=ResizeMode.STRETCH,
    seed=7,
    validation_fraction=0.1,
    splits={
        "train": SplitInfo(
            (
                ShardInfo("train-00000-of-00002.tfrecord", 2, 480_000, "00ab34ef"),
                ShardInfo("x", 1, 240_000, "12345678"),
            ),
            {"places365": 3},
            {"images": 1, "places365": 1},
        ),
        "validation": SplitInfo((ShardInfo("y", 0, 0, "00000000"),), {}, {}),
    },
)


def test_round_trip():
    assert Manifest.from_json(MANIFEST.to_json(), "dataset.json") == MANIFEST


def test_counts():
    assert (MANIFEST.examples, MANIFEST.rejected, MANIFEST.splits["train"].examples) == (3, 2, 3)


def test_tells_people_and_programs_what_a_tensor_is():
    fields = json.loads(MANIFEST.to_json())
    assert fields["schema_version"] == 1
    assert fields["tensors"]["ab_224"]["shape"] == [224, 224, 2]
    assert fields["tensors"]["ab_224"]["range"] == [-1.0, 1.0]
    assert fields["tensors"]["l_299"]["stored"]["shape"] == [299, 299, 1]
    assert fields["splits"]["train"]["examples"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "d.json is not a dataset manifest"),
        ("[]", "d.json is not a dataset manifest"),
        ("{}", "d.json is not a dataset manifest"),
        ('{"schema_version": 99}', "schema version 99, this program reads 1"),
        ('{"schema_version": 1}', "d.json is damaged"),
        (MANIFEST.to_json().replace("compact", "brotli"), "layout 'brotli' is unknown"),
        (MANIFEST.to_json().replace('"compact"', '"full"'), "describes other tensors than layout 'full' has"),
        (MANIFEST.to_json().replace('"validation": {', '"test": {'), "d.json is damaged"),
        (MANIFEST.to_json().replace('"places365": 3', '"places365"'), "is not a dataset manifest"),
        (MANIFEST.to_json().replace('"crc32c"', '"md5"'), "d.json is damaged"),
        (MANIFEST.to_json().replace("00ab34ef", "00ab34eg"), "d.json is damaged .*crc32c"),
        (MANIFEST.to_json().replace('"bytes": 480000', '"bytes": -1'), "d.json is damaged .*bytes"),
        (MANIFEST.to_json().replace('"bytes": 480000', '"bytes": null'), "d.json is damaged .*bytes"),
        (MANIFEST.to_json().replace('"seed": 7', '"seed": 7.5'), "d.json is damaged .*seed"),
        (MANIFEST.to_json().replace('"places365": 3', '"places365": []'), "d.json is damaged .*examples_by_source"),
        (
            MANIFEST.to_json().replace('"places365": 3', '"places365": 4'),
            "train shards of 3 examples from sources of 4",
        ),
        (MANIFEST.to_json().replace("train-00000-of-00002", "../train"), "d.json is damaged .*name"),
        (MANIFEST.to_json().replace('"stretch"', '"squash"'), "d.json is damaged .*'squash'"),
        (MANIFEST.to_json().replace("0.1,", "1.0,"), "d.json is damaged .*validation_fraction"),
    ],
)
def test_what_cannot_be_read_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        Manifest.from_json(text, "d.json")
    assert "\n" not in str(caught.value)
