"""The template to clone for a new vendor.  See README.md: what to replace, in which order to fill in."""
from .runtime import NullDriver

__all__ = ["NullDriver"]
