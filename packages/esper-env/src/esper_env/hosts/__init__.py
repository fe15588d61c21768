"""Hosts: the small networks that seeds are attached to."""

from esper_env.hosts.attention import flex_obstacle
from esper_env.hosts.cnn import CNNHost, GlobalAveragePool
from esper_env.hosts.protocol import HostProtocol, SegmentedHost, SlotSpec, in_action_order
from esper_env.hosts.transformer import TransformerHost

__all__ = [
    "CNNHost",
    "GlobalAveragePool",
    "HostProtocol",
    "SegmentedHost",
    "SlotSpec",
    "TransformerHost",
    "flex_obstacle",
    "in_action_order",
]
