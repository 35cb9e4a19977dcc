"""What is kept: runs, events and claims in Postgres, data and step output in S3."""
