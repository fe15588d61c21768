"""Hosts: the small networks that are grown."""

from esper_env.networks.hosts.cnn import CNNHost
from esper_env.networks.hosts.protocol import HostProtocol, SlotSpec

__all__ = ["CNNHost", "HostProtocol", "SlotSpec"]
