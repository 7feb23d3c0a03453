"""For tests of what you build on Forebay: try a handler, check a driver or a sink against its contract."""

from forebay.testing.deliver import deliver

__all__ = ["deliver"]
