"""Operators with a form of their own on some device; each has a plain definition that the others are tested against."""
