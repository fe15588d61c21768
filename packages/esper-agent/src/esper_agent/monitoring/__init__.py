"""Detectors of abnormal training, their events, and the callback and console that report them."""
