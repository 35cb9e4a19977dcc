"""The former place of what dagster.yaml names: see `store` and `objects`."""
