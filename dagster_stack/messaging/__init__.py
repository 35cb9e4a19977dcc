"""What travels through RabbitMQ, and the connections to it."""
