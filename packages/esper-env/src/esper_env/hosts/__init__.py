"""Hosts: the small networks that seeds are attached to."""

from esper_env.hosts.cnn import CNNHost
from esper_env.hosts.protocol import HostProtocol, SegmentedHost, SlotSpec, in_action_order
from esper_env.hosts.transformer import TransformerHost

__all__ = ["CNNHost", "HostProtocol", "SegmentedHost", "SlotSpec", "TransformerHost", "in_action_order"]
