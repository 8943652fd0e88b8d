import pytest

from cloud.checks import Bucket, check_region
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("location", "places", "near", "far"),
    [
        ("US-CENTRAL1", (), "us-central1", "us-east1"),
        ("US", (), "us-east1", "europe-west4"),
        ("EU", (), "europe-west4", "europe-west2"),  # London is not in the Union
        ("ASIA", (), "asia-east1", "us-east1"),
        ("NAM4", (), "us-east1", "us-west1"),
        ("US", ("us-east1", "us-west1"), "us-west1", "us-central1"),  # put together by its owner
    ],
)
def test_where_a_bucket_can_be_read_without_crossing_a_border(location, places, near, far):
    bucket = Bucket("b", location, places)
    check_region(bucket, near)
    with pytest.raises(UserError, match=f"gs://b lies in {location.lower()}, but the work would be done in {far}: .*"):
        check_region(bucket, far)


def test_the_advice_names_regions_that_there_are():
    def advice(*bucket):
        with pytest.raises(UserError) as caught:
            check_region(Bucket("b", *bucket), "me-west1")
        return str(caught.value).partition("another region (")[2].partition(")")[0]

    assert advice("US-CENTRAL1", ()) == "us-central1"
    assert advice("NAM4", ()) == "us-central1 or us-east1"
    assert advice("EU", ()) == "one of europe-..."
    assert advice("US", ("us-east1", "us-west1")) == "us-east1 or us-west1"


def test_a_location_that_is_not_known_is_no_reason_to_refuse():
    bucket = Bucket("b", "MOON", ())
    check_region(bucket, "us-east1")
    assert bucket.is_in("us-east1")
