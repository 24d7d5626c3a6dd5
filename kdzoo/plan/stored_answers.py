"""Which algorithms can learn from a teacher's stored logits, by what they declare."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdzoo.contract.algorithm import Algorithm


def why_not_logits(cls: type[Algorithm], top_k: int | None) -> str | None:
    """Why an algorithm cannot do with the teacher's logits, of which ``top_k`` are kept (None: all); None if it can."""
    needs = cls.needs
    if needs.features or needs.pre_logits:
        what = "features" if needs.features else "the embedding before the classifier"
        return f"'{cls.name}' reads {what} of the teacher, and only logits are kept"
    if top_k is None or needs.of_teacher == "top_k":
        return None
    if needs.of_teacher == "logits":
        return f"'{cls.name}' reads the teacher's logits of all classes, and only the likeliest {top_k} are kept"
    return f"'{cls.name}' does not declare that the likeliest classes are enough for it, and only {top_k} are kept"


def why_not_without_network(cls: type[Algorithm]) -> str | None:
    """Why an algorithm needs the teacher's network; None if the logits of the training samples are enough."""
    if cls.needs.of_teacher != "network" and not cls.needs.makes_images and cls.needs.data != "none":
        return None
    return f"'{cls.name}' needs the teacher's network, not only its answers to the training samples"
