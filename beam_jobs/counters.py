"""What workers count of a job, and how the driver reads it when the job has ended, whatever the engine."""

import collections

from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.runners.runner import PipelineResult

_NAMESPACE = "pictures"


def count(name: str, number: int = 1) -> None:
    """Adds to a counter; called in a worker. A name belongs to one step of a job."""
    Metrics.counter(_NAMESPACE, name).inc(number)


def read(result: PipelineResult) -> collections.Counter[str]:
    """The counters of a job that has ended, by name; those that nobody added to are 0."""
    counters = result.metrics().query(MetricsFilter().with_namespace(_NAMESPACE))["counters"]
    return collections.Counter({counter.key.metric.name: counter.result for counter in counters})
