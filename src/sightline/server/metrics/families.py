"""What the engine counts as metric families of Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from sightline.engine.stats import Histogram


class Families:
    """Makes families that all have the same first labels."""

    def __init__(self, **labels: str) -> None:
        self._names = list(labels)
        self._values = list(labels.values())

    def gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=self._names)
        family.add_metric(self._values, value)
        return family

    def counter(self, name: str, text: str, value: float) -> CounterMetricFamily:
        """`name` without the `_total` that its sample gets."""
        family = CounterMetricFamily(name, text, labels=self._names)
        family.add_metric(self._values, value)
        return family

    def counters(self, name: str, text: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
        """One sample for each value of a further label."""
        family = CounterMetricFamily(name, text, labels=[*self._names, label])
        for value, count in values.items():
            family.add_metric([*self._values, value], count)
        return family

    def gauges(self, name: str, text: str, label: str, values: dict[str, float]) -> GaugeMetricFamily:
        """One sample for each value of a further label."""
        family = GaugeMetricFamily(name, text, labels=[*self._names, label])
        for value, count in values.items():
            family.add_metric([*self._values, value], count)
        return family

    def histogram(self, name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, text, labels=self._names)
        family.add_metric(self._values, _buckets(histogram), histogram.sum)
        return family


def _buckets(histogram: Histogram) -> Sequence[tuple[str, float]]:
    """Cumulative counts by upper bound; the engine may have added to the histogram between two of them."""
    buckets, total = [], 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append((floatToGoString(bound), float(total)))
    return buckets
