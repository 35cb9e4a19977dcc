"""What the broker knows of a queue."""

from dataclasses import dataclass

from kombu.connection import Connection


@dataclass(frozen=True)
class QueueState:
    """Messages that wait in a queue, and the consumers that it has."""

    ready: int
    consumers: int

    @classmethod
    def of(cls, connection: Connection, queue: str) -> "QueueState":
        """One that does not exist is empty and has no consumer. Raises the connection's errors."""
        # A queue that is not there closes the channel it was asked on: not one that is used for anything else.
        channel = connection.channel()
        try:
            declared = channel.queue_declare(queue, passive=True)
        except connection.channel_errors:
            return cls(0, 0)
        finally:
            # py-amqp opens a channel again that the broker closed.
            channel.close()
        return cls(int(declared.message_count), int(declared.consumer_count))
