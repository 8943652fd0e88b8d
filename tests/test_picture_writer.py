from pathlib import PurePosixPath

from hypothesis import example, given
from hypothesis import strategies as st

from beam_jobs.picture_writer import target_name

keys = st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=300), min_size=1)


@given(keys)
@example([f"{'x' * 180}.\u1e70\u1e70\u1e70", ""])
@example([f"{'x' * 176}.png", f"{'x' * 177}"])
def test_a_name_leads_nowhere_else_and_is_short_enough(parts):
    name = PurePosixPath(target_name("/".join(["images", *parts])))
    assert name.parts[0] == "images"
    assert len(name.parts) == 1 + len(parts)
    assert not {".", "..", "/"} & set(name.parts)
    assert all(0 < len(part.encode()) <= 180 for part in name.parts)


@given(keys, keys)
def test_no_two_keys_have_the_same_name(first, second):
    assert (target_name("/".join(first)) == target_name("/".join(second))) == (first == second)


def test_names_as_people_expect_them():
    assert target_name("images/photos/a b.JPEG") == "images/photos/a b.JPEG.png"
    assert target_name("images/../..") == "images/%2E%2E/...png"
    assert target_name("images/100%.png") == "images/100%25.png.png"
    long = target_name(f"images/{'x' * 250}.jpg")
    assert long != target_name(f"images/{'x' * 251}.jpg")
    assert long.startswith("images/xxx")
    assert long.endswith(".png")
