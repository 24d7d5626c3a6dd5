"""What a plugin that offers networks may use."""

from kdzoo.contract.extension_points import ModelFamily
from kdzoo.contract.networks import StagedNet, he_normal, network_cfgs, register_networks
from kdzoo.errors import ModelError

__all__ = [
    "ModelError",
    "ModelFamily",
    "StagedNet",
    "he_normal",
    "network_cfgs",
    "register_networks",
]
