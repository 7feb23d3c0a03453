"""Requests to other services that are kept first: /v1/forward/{target}/{path}."""
