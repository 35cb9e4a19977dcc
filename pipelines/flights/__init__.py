"""Every flight that left New York in 2013: checked, summed up, reported.

`source` → `table` (good rows and bad) → `delays` (sums that add up) → `report` with its `picture`;
`job`, `assets` and `inbox` are three ways to run them.
"""
