"""Attention over the key-value cache in blocks, in the form that is fastest on each device."""
