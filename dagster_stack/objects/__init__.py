"""What is kept in S3: data between steps, and what steps print."""
