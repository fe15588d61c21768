"""Telemetry events of N growing networks."""

from esper_env.recording.recorder import Recorder
from esper_env.recording.step import StepRecord, TrainedEpoch

__all__ = ["Recorder", "StepRecord", "TrainedEpoch"]
