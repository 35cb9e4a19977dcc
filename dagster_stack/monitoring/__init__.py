"""What an operator wants to know of the stack, as Prometheus asks for it: the service `metrics`."""
