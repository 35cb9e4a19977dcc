"""Every flight that left New York in 2013: checked, summed up, reported.

`source` → `table` (good rows and bad, by `schema`) → `delays` (sums that add up) → `report` with its
`picture`; `job`, `assets` and `inbox` are three ways to run them.
"""

import warnings

from dagster import BetaWarning

# Dagster's decorators for observed assets and sensors warn at the start of each process, in each step's log.
warnings.filterwarnings("ignore", category=BetaWarning)
