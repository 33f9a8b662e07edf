"""What GPU code may cost, in budget.json: counts that may only fall.

After an improvement `LOWER_BUDGET=1 pytest tests/cuda -m fake_cuda` writes the lower counts into the file.
"""

import json
import os
from pathlib import Path

PATH = Path(__file__).with_name("budget.json")


def check_budget(name: str, measured: dict[str, int], details: object = "") -> None:
    """Compare counts with what budget.json allows under a name.

    Args:
        name: of the part of the file.
        measured: count by what is counted.
        details: shown where there is too much, such as the places of host synchronisations.

    Raises:
        AssertionError: a count is higher; or it is lower, and the file is not.
    """
    budget = json.loads(PATH.read_text())
    allowed = budget[name]
    assert measured.keys() == allowed.keys(), f"budget.json, {name}: expected counts of {sorted(measured)}"
    higher = {key: f"{measured[key]}, allowed {allowed[key]}" for key in measured if measured[key] > allowed[key]}
    assert not higher, f"{name} costs more than budget.json allows: {higher}. {details}"
    lower = {key: f"{measured[key]}, allowed {allowed[key]}" for key in measured if measured[key] < allowed[key]}
    if lower and os.environ.get("LOWER_BUDGET"):
        budget[name] = measured
        PATH.write_text(json.dumps(budget, indent=2) + "\n")
        return
    assert not lower, f"{name} costs less than budget.json allows: {lower}. Lower it: LOWER_BUDGET=1 pytest tests/cuda"
