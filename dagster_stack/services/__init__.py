"""The services around runs and steps: init, dagit, daemon, and how each shows that it lives."""
