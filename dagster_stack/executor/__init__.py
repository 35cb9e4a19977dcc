"""The executor: which steps are ready, how they get to a queue, and what came of them."""
