"""The former place of what dagster.yaml names: see `launch`."""
