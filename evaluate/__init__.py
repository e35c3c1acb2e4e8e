"""Fusion metrics, trivial rows and reports that people can trust."""
