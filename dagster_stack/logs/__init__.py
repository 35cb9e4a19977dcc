"""What the services print: one line an event, as text or JSON, with the run, step and task that it belongs to."""
