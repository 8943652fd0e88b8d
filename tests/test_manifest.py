import json

import google_crc32c
import pytest

from pipeline import color_counts
from pipeline.color_counts import ColorCounts
from pipeline.errors import UserError
from pipeline.filters import Filters
from pipeline.image import ResizeMode
from pipeline.manifest import FileInfo, Manifest, ShardInfo, SplitInfo
from pipeline.rejects import Reason

COLORS = ColorCounts(3, (6.0, -1.5), (0,) * 264 + (3,) + (0,) * 264)
MANIFEST = Manifest(
    layout="compact",
    resize_mode=ResizeMode.STRETCH,
    seed=7,
    validation_fraction=0.1,
    filters=Filters(32, 50_000_000, True, 2.0, 10.0),
    splits={
        "train": SplitInfo(
            (
                ShardInfo("train-00000-of-00002.tfrecord", 480_000, "00ab34ef", 2, (0,)),
                ShardInfo("x", 240_000, "12345678", 1, (0,)),
            ),
            {"images": 1, "places365": 4},
            {"places365": 3},
            {"images": {Reason.TOO_DARK: 1}, "places365": {Reason.GRAYSCALE: 1}},
            COLORS,
        ),
        "validation": SplitInfo((ShardInfo("y", 0, "00000000", 0, ()),), {}, {}, {}, color_counts.NONE),
    },
    rejects=FileInfo("rejects.jsonl", 300, "01234567"),
)


def altered(old, new):
    """The manifest with a text replaced, and the checksum of what results."""
    text = MANIFEST.to_json()
    assert old in text
    fields = json.loads(text.replace(old, new))
    fields.pop("crc32c", None)
    crc = google_crc32c.value(json.dumps(fields, indent=1).encode())
    return json.dumps({**fields, "crc32c": f"{crc:08x}"}, indent=1)


def test_round_trip():
    assert Manifest.from_json(MANIFEST.to_json(), "dataset.json") == MANIFEST


def test_counts():
    assert (MANIFEST.examples, MANIFEST.listed, MANIFEST.splits["train"].examples) == (3, 5, 3)
    assert MANIFEST.rejected == {Reason.TOO_DARK: 1, Reason.GRAYSCALE: 1}


def test_tells_people_and_programs_what_a_tensor_is():
    fields = json.loads(MANIFEST.to_json())
    assert fields["schema_version"] == 4
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
        ('{"schema_version": 99}', "schema version 99, this program reads 4"),
        ('{"schema_version": 4}', "d.json is damaged: its checksum differs"),
        (MANIFEST.to_json() + " ", "its checksum differs"),
        (MANIFEST.to_json().replace("480000", "480001"), "its checksum differs"),
        (altered("compact", "brotli"), "layout 'brotli' is unknown"),
        (altered('"compact"', '"full"'), "describes other tensors than layout 'full' has"),
        (altered('"validation": {', '"test": {'), "d.json is damaged"),
        (MANIFEST.to_json().replace('"places365": 3', '"places365"'), "is not a dataset manifest"),
        (altered('"crc32c"', '"md5"'), "d.json is damaged"),
        (altered("00ab34ef", "00ab34eg"), "d.json is damaged .*crc32c"),
        (altered('"examples": 2', '"examples": 33'), r"d.json is damaged \(1 segments of 33 examples in train-00000"),
        (altered('"bytes": 480000', '"bytes": -1'), "d.json is damaged .*bytes"),
        (altered('"bytes": 480000', '"bytes": null'), "d.json is damaged .*bytes"),
        (altered('"seed": 7', '"seed": 7.5'), "d.json is damaged .*seed"),
        (altered('"places365": 3', '"places365": []'), "d.json is damaged .*written"),
        (
            altered('"places365": 3', '"places365": 4'),
            "train: .* listed, .*'places365': 5.* written or rejected",
        ),
        (altered("train-00000-of-00002", "../train"), "d.json is damaged .*name"),
        (altered('"stretch"', '"squash"'), "d.json is damaged .*'squash'"),
        (altered("0.1,", "1.0,"), "d.json is damaged .*validation_fraction"),
        (altered('"too_dark"', '"too_bright"'), "d.json is damaged .*too_bright"),
        (altered('"examples": 2', '"examples": 3'), "train shards of 4 examples from sources of 3"),
    ],
)
def test_what_cannot_be_read_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        Manifest.from_json(text, "d.json")
    assert "\n" not in str(caught.value)
