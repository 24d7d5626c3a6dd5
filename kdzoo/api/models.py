"""What a plugin that offers networks may use."""

from kdzoo.contract.extension_points import ModelFamily
from kdzoo.contract.networks import StagedNet, he_normal, network_cfgs, register_networks
from kdzoo.contract.structure import UnknownValue, structure
from kdzoo.errors import ModelError

__all__ = [
    "ModelError",
    "ModelFamily",
    "StagedNet",
    "UnknownValue",
    "he_normal",
    "network_cfgs",
    "register_networks",
    "structure",
]
