"""Webhooks: deliveries of other services, taken when their signature is right."""
