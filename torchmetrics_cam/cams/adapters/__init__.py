"""Adapters that make CAM objects of other libraries usable as sources; one file per library."""
