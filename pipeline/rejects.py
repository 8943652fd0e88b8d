"""Why a picture is not in a dataset."""

import enum


class Reason(str, enum.Enum):
    """The reasons that there are; their values stand in `rejects.jsonl` and name Beam counters."""

    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"
    GRAYSCALE = "grayscale"
    TOO_DARK = "too_dark"
    TOO_LITTLE_COLOR = "too_little_color"
    DUPLICATE_KEY = "duplicate_key"
    UNREADABLE_BYTES = "unreadable_bytes"


class RejectedImage(Exception):
    """A picture that cannot be used: an enumerated reason and one line of detail."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
