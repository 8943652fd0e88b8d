"""Why a picture is not in a dataset."""

import enum


class Reason(str, enum.Enum):
    """The reasons that there are; their values stand in `rejects.jsonl` and name Beam counters."""

    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    TOO_LARGE = "too_large"
    DUPLICATE_KEY = "duplicate_key"
    UNREADABLE_BYTES = "unreadable_bytes"


class RejectedImage(Exception):
    """A picture that cannot be used: an enumerated reason and one line of detail."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
