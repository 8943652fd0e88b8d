"""Whether a project may use as many GPUs as are needed, as far as its quotas tell."""

import logging
from typing import NamedTuple

from cloud.compute import Compute
from pipeline.errors import UserError

_LOGGER = logging.getLogger(__name__)
_ALL = "GPUS_ALL_REGIONS"
_KINDS = {"H100_80GB": "H100"}  # whose quota has another name than the GPU
_WEEK = 7 * 24  # hours
_PAGE = "https://console.cloud.google.com/iam-admin/quotas?project="


class _Quota(NamedTuple):
    metric: str
    limit: float
    usage: float


def check_gpus(compute: Compute, region: str, gpu_type: str, needed: int, spot: bool, hours: float) -> None:
    """Looks whether a quota has room for GPUs; of those that no quota is for, Compute Engine says it.

    Machines that are deleted within a week may take either of two quotas, spot or not.
    https://cloud.google.com/compute/docs/instance-groups/limit-vm-runtime-in-migs

    Args:
        compute: in the project that pays.
        region: of the machines.
        gpu_type: as nvidia-tesla-a100.
        needed: how many.
        spot: whether they may be taken away.
        hours: after which they are deleted.

    Raises:
        UserError: no quota has room.
    """
    found = {metric: _Quota(metric, *values) for metric, values in compute.quotas(region).items()}
    kind = gpu_type.removeprefix("nvidia-").removeprefix("tesla-").upper().replace("-", "_")
    kind = _KINDS.get(kind, kind)
    standard, preemptible = (found.get(f"{prefix}NVIDIA_{kind}_GPUS") for prefix in ("", "PREEMPTIBLE_"))
    own, other = (preemptible, standard) if spot else (standard, preemptible)
    if own is None:
        _LOGGER.info("whether a quota of %s is left for %s could not be looked up", region, gpu_type)
    elif not (_has_room(own, needed) or (other and hours <= _WEEK and _has_room(other, needed))):
        raise _full(compute.project, own, f" in {region}", needed, ", or choose a zone of another region")
    of_all = found.get(_ALL)
    if of_all and not spot and not _has_room(of_all, needed):
        raise _full(compute.project, of_all, "", needed, "")


def _has_room(quota: _Quota, needed: int) -> bool:
    return quota.limit - quota.usage >= needed


def _full(project: str, quota: _Quota, place: str, needed: int, other: str) -> UserError:
    return UserError(
        f"project {project} may use {quota.limit:.0f} {quota.metric}{place}, {quota.usage:.0f} of them are in use, and "
        f"{needed} are needed: ask for more at {_PAGE}{project}{other}"
    )
