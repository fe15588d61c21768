"""N networks trained at once."""

from esper_env.networks.population.measure import Commitment, Measurement, updated
from esper_env.networks.population.optimisation import Optimisation
from esper_env.networks.population.population import Population, PopulationConfig
from esper_env.networks.population.snapshots import Mismatch
from esper_env.networks.population.structure import Structure
from esper_env.networks.population.trainers import TrainStats

__all__ = [
    "Commitment",
    "Measurement",
    "Mismatch",
    "Optimisation",
    "Population",
    "PopulationConfig",
    "Structure",
    "TrainStats",
    "updated",
]
