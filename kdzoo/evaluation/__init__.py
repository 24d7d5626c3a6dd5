"""Metrics, measurements, and the verification of exported files."""
