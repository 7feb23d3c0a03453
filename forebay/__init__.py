"""Forebay: a durable queue between HTTP producers and a slow or dead database."""

from forebay.errors import Reject, RetryLater, Unavailable
from forebay.message import Message

__all__ = ["Message", "Reject", "RetryLater", "Unavailable", "__version__"]

__version__ = "0.1.0"
