"""Detectors of abnormal training, and the callback and console that report what they find."""
