"""What happens to N growing networks, told as telemetry events."""

from esper_env.recording.inspections import Inspections
from esper_env.recording.recorder import COUNTERS, Recorder
from esper_env.recording.step import StepRecord, TrainedEpoch

__all__ = ["COUNTERS", "Inspections", "Recorder", "StepRecord", "TrainedEpoch"]
