"""Untrusted photos and masks: located, fetched within limits, inspected, decoded."""
