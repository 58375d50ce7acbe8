"""Adapters: one folder a vendor.  Nobody imports them; the registry finds them by entry point group haian.adapters."""
