"""Operators with a form of their own on some device; each has a plain definition that the others are tested against.

`attention` is that of the engine, over a cache in blocks; `dense_attention` that over whole tensors.
"""
