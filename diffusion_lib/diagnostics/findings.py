"""A finding: a number, the interval it should lie in, and what it means if it does not.

The interval is derived where the number is measured; nothing here is a matter of taste.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .. import plotting

if TYPE_CHECKING:
    from IPython.display import HTML

HINTS = {
    "calls": "the network was never asked",
    "shape": "the result must have the shape of x: look for (B, 1) against (B,)",
    "finite": "divided by sigma_0 = 0 or alpha_T = 0, or root of a negative number",
    "input kept": "x is changed in place: the caller's noise is overwritten",
    "repeatable": "state kept between calls, or randomness that is not torch's normal",
    "noise shape": "noise is shared by values or examples: use torch.randn_like(x)",
    "time shape": "t must be one number or (B,), the same for the whole batch",
    "times in range": "asked at t = 0 or beyond the table: off by one, or 0-based",
    "times fall": "must go down from t_max: reversed() missing? Churn rises on purpose",
    "affine": "x0 clipped to [0, 1], not to [-1, 1]? Rows of the batch mixed?",
    "point: mean": "wrong although x0 is known: its formula, last step, or no from_eps",
    "point: std": "noise left: added at the last step, a missing step, told a later t",
    "unit: mean": "a shift from nowhere: a clip range or a mean that is not centred",
    "unit: std, low": "too little noise: none, a root missing (beta z), no direction",
    "unit: std, high": "too much noise, a root missing, or told an earlier t",
    "narrow: mean": "steps skipped without respacing, or two tables that disagree",
    "narrow: std, low": "too little noise: none, beta z for sqrt(beta) z, no direction",
    "narrow: std, high": "noise left: as for the point, or told an earlier t",
    "mixture": "the law is wrong although mean and deviation may be right",
    "prior": "x_T still holds the data's mean: betas times 1000 / T? First call at T?",
    "line": "a straight line does better: does the time reach the net? is eps total?",
    "slope": "not a conditional mean: L1 or Huber loss, or a wrong scale of the answer",
    "excess, low": "impossibly good: the clean data leak into the input",
    "excess, high": "much is left to learn at this time",
    "data: lowest": "no value below 0: scale to [-1, 1], x / 127.5 - 1 or 2 x - 1",
    "data: highest": "values beyond 10: scale to [-1, 1], x / 127.5 - 1",
}


class Finding(NamedTuple):
    """A measured number, and the interval where a correct program has it."""

    name: str
    value: float
    low: float
    high: float

    @property
    def ok(self) -> bool:
        """Whether the value lies in the interval (NaN does not)."""
        return bool(self.low <= self.value <= self.high)

    @property
    def hint(self) -> str:
        """What usually causes it; empty where nothing is wrong."""
        if self.ok:
            return ""
        name = self.name.split(" at ")[0]
        side = "low" if self.value < self.low else "high"
        return HINTS[name] if name in HINTS else HINTS[f"{name}, {side}"]

    @property
    def allowed(self) -> str:
        """The interval in words."""
        if self.low == self.high:
            return f"{self.low:.3g}"
        if math.isinf(self.low):
            return f"at most {self.high:.3g}"
        if math.isinf(self.high):
            return f"at least {self.low:.3g}"
        return f"{self.low:.3g} to {self.high:.3g}"


def failed(findings: Sequence[Finding]) -> list[str]:
    """Return the names of the findings that are not ok."""
    return [finding.name for finding in findings if not finding.ok]


def table(findings: Sequence[Finding]) -> "HTML":
    """Return findings as a table to show: value, interval, verdict, usual cause."""
    return plotting.table(
        {
            "check": [f.name for f in findings],
            "value": [f.value if abs(f.value) > 1e-9 else 0 for f in findings],
            "allowed": [f.allowed for f in findings],
            "verdict": ["ok" if f.ok else "✗ look here" for f in findings],
            "usual cause": [f.hint for f in findings],
        }
    )
