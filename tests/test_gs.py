"""Paths of Cloud Storage."""

import pytest

from pipeline import gs


@pytest.mark.parametrize(
    ("path", "is_path", "has_bucket", "has_object"),
    [
        ("gs://bucket/folder/file", True, True, True),
        ("gs://my.bucket_1/a", True, True, True),
        ("gs://bucket/", True, True, False),
        ("gs://bucket", True, True, False),
        ("gs://bucket//a", True, True, False),
        ("gs://bucket/a\n--b", True, True, False),
        ("gs://Bucket/a", True, False, False),
        ("gs://b/a", True, False, False),
        ("gs:///a", True, False, False),
        ("gs://", True, False, False),
        ("gs:/bucket/a", False, False, False),
        ("s3://bucket/a", False, False, False),
        ("bucket/a", False, False, False),
        ("/gs://bucket/a", False, False, False),
    ],
)
def test_what_a_path_leads_to(path, is_path, has_bucket, has_object):
    assert gs.is_path(path) is is_path
    assert gs.has_bucket(path) is has_bucket
    assert gs.has_object(path) is has_object


def test_bucket_and_object():
    assert gs.split("gs://bucket/folder/file") == ("bucket", "folder/file")
    assert gs.split("gs://bucket/") == ("bucket", "")
    assert gs.split("gs://bucket") == ("bucket", "")
