"""N networks that train side by side."""

from esper_env.population.build import build_population, host_builder
from esper_env.population.config import PopulationConfig
from esper_env.population.evaluation.measurement import Commitment, Measurement, updated
from esper_env.population.population import Population
from esper_env.population.structure import Structure
from esper_env.population.training.trainer import TrainStats

__all__ = [
    "Commitment",
    "Measurement",
    "Population",
    "PopulationConfig",
    "Structure",
    "TrainStats",
    "build_population",
    "host_builder",
    "updated",
]
