"""Kafka behind the broker interface, through aiokafka."""
