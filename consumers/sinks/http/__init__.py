"""The sink `http`: each message is one request to a service."""
