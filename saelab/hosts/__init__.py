"""Host models: what is looked into, its transform, its layers by name, and the tokens they give."""

from saelab.hosts.host import Host
from saelab.hosts.layers import Layer
from saelab.hosts.loaders import load
from saelab.hosts.tokens import POLICIES, Prefix
from saelab.hosts.transform import Transform
from saelab.hosts.weights import weights_digest

__all__ = ["POLICIES", "Host", "Layer", "Prefix", "Transform", "load", "weights_digest"]
