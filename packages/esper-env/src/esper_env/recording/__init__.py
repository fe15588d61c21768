"""What happens to N growing networks, told as telemetry events."""

from esper_env.recording.inspections import Inspections
from esper_env.recording.recorder import Recorder
from esper_env.recording.step import StepRecord, TrainedEpoch

__all__ = ["Inspections", "Recorder", "StepRecord", "TrainedEpoch"]
