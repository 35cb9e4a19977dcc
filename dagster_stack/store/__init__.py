"""What is kept in Postgres: runs, events, leases."""
