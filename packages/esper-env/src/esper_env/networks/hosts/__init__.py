"""Hosts: the small networks that are grown."""

from esper_env.networks.hosts.cnn import CNNHost
from esper_env.networks.hosts.protocol import HostProtocol, SlotSpec
from esper_env.networks.hosts.segmented import SegmentedHost, in_action_order
from esper_env.networks.hosts.transformer import TransformerHost

__all__ = ["CNNHost", "HostProtocol", "SegmentedHost", "SlotSpec", "TransformerHost", "in_action_order"]
