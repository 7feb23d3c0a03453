"""RabbitMQ as the broker: quorum queues, publisher confirms, a ladder of delay queues."""
