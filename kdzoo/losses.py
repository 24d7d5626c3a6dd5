"""Every loss of every algorithm under one path, for a training loop of one's own.

    from kdzoo.losses import kd_loss

Each is a pure function of tensors; its docstring says their shapes, and ``dir(kdzoo.losses)`` lists all. They are the
functions that the installed plugins name in ``Algorithm.loss_functions``, and those that plugins share. A plugin is
imported when one of its functions is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdzoo.errors import PluginError, UnknownName, nearest
from kdzoo.zoo.cards import losses_of
from kdzoo.zoo.catalogue import catalogue
from kdzoo.zoo.finding import BUILT_IN
from kdzoo.zoo.loading import load_zoo

if TYPE_CHECKING:
    from kdzoo.contract.extension_points import Offer
    from kdzoo.contract.shared_losses import mean_prediction, sample_distances, soft_target_loss

__all__ = ["mean_prediction", "sample_distances", "soft_target_loss"]

SHARED = "kdzoo.contract.shared_losses"


class UnknownLoss(UnknownName, AttributeError):
    """A name that is no loss of any installed plugin."""


def offered() -> dict[str, Mapping[str, Offer]]:
    """Return the losses of the installed plugins: by name, for each module that defines one the algorithm's offer.

    Of kdzoo's own and another's under one name, its own stays.
    """
    found: dict[str, dict[str, Offer]] = {}
    for offer in catalogue().algorithms.values():
        for name, module in losses_of(offer.thing).items():
            if name not in __all__:
                found.setdefault(name, {}).setdefault(module, offer)
    own = {
        name: {module: offer for module, offer in offers.items() if offer.distribution == BUILT_IN}
        for name, offers in found.items()
    }
    return {name: own[name] or offers for name, offers in found.items()}


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'kdzoo.losses' has no attribute '{name}'")
    value = getattr(import_module(SHARED), name) if name in __all__ else _loss(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *offered()])


def _loss(name: str) -> Any:
    known = offered()
    if name not in known:
        close = nearest(name, sorted(known)) or "; dir(kdzoo.losses) lists them"
        raise UnknownLoss(f"kdzoo.losses: unknown loss '{name}'{close}")
    if len(known[name]) > 1:
        owners = [f"{module} of {offer.distribution} {offer.version}" for module, offer in known[name].items()]
        raise PluginError(
            f"kdzoo.losses: '{name}' is offered by {' and by '.join(owners)}; import it from the module that is meant"
        )
    (offer,) = known[name].values()
    functions = load_zoo(offer.plugin).algorithm(offer.name).loss_functions
    return next(function for function in functions if function.__name__ == name)
