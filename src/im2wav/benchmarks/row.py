"""A row of the benchmark table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A measured value and its limit.

    Attributes:
        name: name of the benchmark.
        value: measured value.
        unit: unit of value and limit.
        limit: value of the machine or of a baseline in the same run, or None.
        limit_name: description of the limit.
        bar: target of the ratio value / limit, or None.
        at_least: whether the ratio must be at least the target; at most otherwise.
        note: comment.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    limit_name: str = ""
    bar: float | None = None
    at_least: bool = True
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """value / limit."""
        return None if not self.limit else self.value / self.limit

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.bar is None or self.ratio is None:
            return None
        return self.ratio >= self.bar if self.at_least else self.ratio <= self.bar
