"""Hosts: the small networks that are grown."""

from esper_env.hosts.cnn import CNNHost
from esper_env.hosts.protocol import HostProtocol, SlotSpec
from esper_env.hosts.segmented import SegmentedHost, in_action_order
from esper_env.hosts.transformer import TransformerHost

__all__ = ["CNNHost", "HostProtocol", "SegmentedHost", "SlotSpec", "TransformerHost", "in_action_order"]
