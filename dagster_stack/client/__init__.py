"""What `make run`, `make demo` and `make workers` do: launch through Dagit, watch, show. Loads no Dagster."""
