"""Expected goodput of a run whose chips fail, and the best interval between its saves.

Failures are taken as independent and exponentially distributed, as by J. W. Young, "A first order approximation to the
optimum checkpoint interval", CACM 17(9), 1974, and J. T. Daly, "A higher order estimate of the optimum checkpoint
interval for restart dumps", Future Generation Computer Systems 22(3), 2006. All times are in seconds.
"""

from __future__ import annotations

import math

# exp() of more overflows.
_LARGEST_EXPONENT = 700.0


def expected_goodput(interval: float, pause: float, restart: float, between_failures: float) -> float:
    """Computes the fraction of a run's time that goes into steps that count (Daly 2006, the complete model).

    Args:
      interval: time of the steps from one save to the next.
      pause: time for which a save holds up the steps.
      restart: time from a failure to the next step, which may fail as well.
      between_failures: mean time between failures of the run, not of a chip.
    """
    before, whole = restart / between_failures, (restart + interval + pause) / between_failures
    if whole > _LARGEST_EXPONENT:
        return 0.0
    # The expected time of an interval with its save, failures and repetitions included.
    seconds = between_failures * math.exp(before) * math.expm1(whole - before)
    return interval / seconds


def best_interval(pause: float, between_failures: float) -> float:
    """Computes the interval between saves with about the highest goodput (Daly 2006, equation 37).

    Its leading term is Young's, the square root of 2 x pause x time between failures.
    """
    if pause >= 2 * between_failures:
        return between_failures
    ratio = math.sqrt(pause / (2 * between_failures))
    return math.sqrt(2 * pause * between_failures) * (1 + ratio / 3 + ratio**2 / 9) - pause
