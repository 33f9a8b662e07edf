"""One line of a benchmark's table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A measured figure beside its limit.

    Attributes:
        name: what was measured.
        value: the figure.
        unit: of the figure and of the limit.
        limit: what the machine, or the reference way, reaches in the same run; None where there is none.
        limit_name: what the limit is.
        bar: the ratio value / limit that is promised; None where nothing is.
        at_least: whether a larger ratio is better.
        note: what stands between the figure and its limit.
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
        """Whether the bar is met; None without one."""
        if self.bar is None or self.ratio is None:
            return None
        return self.ratio >= self.bar if self.at_least else self.ratio <= self.bar
