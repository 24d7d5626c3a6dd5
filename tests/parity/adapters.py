"""One adapter a loss: from a case's inputs to the very function that an algorithm uses.

An adapter may add what a case contains beside our term (a weight, the cross-entropy that the core adds), never a
different formula.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from cases import Answer
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.api import Level, ModelShapes, Shapes, soft_target_loss
from kdzoo_adversarial.adversarial_logits import adversarial_logits_discriminator_loss, adversarial_logits_student_loss
from kdzoo_attention.at import at_loss
from kdzoo_data_free.dafl import dafl_activation_loss, dafl_balance_loss, dafl_one_hot_loss
from kdzoo_data_free.deep_inversion import (
    deep_inversion_disagreement_loss,
    deep_inversion_divergence,
    total_variation_loss,
)
from kdzoo_data_free.statistics import batch_norm_gap_loss
from kdzoo_data_free.zskt import zskt_attention_loss, zskt_divergence_loss
from kdzoo_feature.fitnet import HintProjector, fitnet_loss
from kdzoo_feature.review_kd import ReviewKD, review_kd_loss
from kdzoo_graph.irg import irg_edge_loss, irg_transformation_loss, irg_vertex_loss
from kdzoo_lifelong.lwf import lwf_loss
from kdzoo_multi_teacher.ca_mkd import ca_mkd_feature_loss, ca_mkd_logits_loss, ca_mkd_weights
from kdzoo_multi_teacher.mt_average import mt_average_losses_loss, mt_average_outputs_loss
from kdzoo_online.dml import dml_loss
from kdzoo_online.one import one_loss
from kdzoo_relation.crd import CRD
from kdzoo_relation.rkd import rkd_angle_loss, rkd_distance_loss
from kdzoo_response.dist import dist_inter_loss, dist_intra_loss
from kdzoo_response.dkd import dkd_non_target_loss, dkd_target_loss
from kdzoo_self.byot import byot_hint_loss, byot_soft_label_loss
from kdzoo_self.sad import sad_loss

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def numbered(inputs: Inputs, stem: str) -> list[Tensor]:
    """The inputs ``<stem>_0``, ``<stem>_1``, ... in order."""
    count = sum(name.startswith(f"{stem}_") and name[len(stem) + 1 :].isdigit() for name in inputs)
    return [inputs[f"{stem}_{i}"] for i in range(count)]


def plant(module: nn.Module, name: str, value: Tensor) -> None:
    """Put ``value`` itself in the place of a parameter, so that it receives the gradient."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    delattr(owner, leaf)
    setattr(owner, leaf, value)


def parameters_in(inputs: Inputs) -> dict[str, Tensor]:
    """Dotted parameter name -> value, of all inputs ``param_<name>``."""
    return {
        name.removeprefix("param_").replace("__", "."): value
        for name, value in inputs.items()
        if name.startswith("param_")
    }


# --- response -------------------------------------------------------------------------------


def kd_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    loss = soft_target_loss(inputs["student_logits"], inputs["teacher_logits"], temperature=hyper["temperature"])
    return Answer(loss)


def kd_hybrid_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    kd = soft_target_loss(inputs["student_logits"], inputs["teacher_logits"], temperature=hyper["temperature"])
    task = F.cross_entropy(inputs["student_logits"], inputs["targets"])
    return Answer(hyper["alpha"] * kd + (1 - hyper["alpha"]) * task)


def kd_ce_form_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    # The card's claim: the cross-entropy form is larger by the teacher's entropy, which has no gradient.
    temperature = hyper["temperature"]
    kd = soft_target_loss(inputs["student_logits"], inputs["teacher_logits"], temperature=temperature)
    entropy = torch.special.entr(F.softmax(inputs["teacher_logits"] / temperature, dim=1)).sum(1).mean()
    return Answer(hyper["alpha"] * (kd + temperature**2 * entropy))


def dkd_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    read = inputs["student_logits"], inputs["teacher_logits"], inputs["targets"], hyper["temperature"]
    return Answer(hyper["alpha"] * dkd_target_loss(*read) + hyper["beta"] * dkd_non_target_loss(*read))


def dist_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    # Every pixel of a segmentation case is a sample.
    logits = [inputs[name].movedim(1, -1).flatten(0, -2) for name in ("student_logits", "teacher_logits")]
    return Answer(hyper["beta"] * dist_inter_loss(*logits, 1.0) + hyper["gamma"] * dist_intra_loss(*logits, 1.0))


# --- features -------------------------------------------------------------------------------


def fitnet_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    (student,), (teacher,) = numbered(inputs, "student_features"), numbered(inputs, "teacher_features")
    projector = HintProjector(level_of(student), level_of(teacher), hyper["use_relu"]).to(student.dtype)
    for name, value in parameters_in(inputs).items():
        plant(projector, name, value)
    return Answer(fitnet_loss(projector(student), teacher))


def level_of(features: Tensor) -> Level:
    _, channels, height, width = features.shape
    return Level("level", channels, height, width, stride=1)


def hint_mse_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    pairs = zip(numbered(inputs, "student_features"), numbered(inputs, "teacher_features"), strict=True)
    return Answer(torch.stack([fitnet_loss(student, teacher) for student, teacher in pairs]).sum())


def review_kd_hcl_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    return Answer(review_kd_loss(numbered(inputs, "student_features"), numbered(inputs, "teacher_features")))


def review_kd_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    # The first map of a case is the stem's, which nothing reviews; its modules are numbered from the deepest up.
    maps = {
        who: [*numbered(inputs, f"{who}_features")[1:], inputs[f"{who}_pooled"][:, :, None, None]]
        for who in ("student", "teacher")
    }
    student, teacher = (
        ModelShapes(tuple(level_of(own) for own in found[:-1]), found[-1].shape[1], 2) for found in maps.values()
    )
    options = ReviewKD.Options(warmup_epochs=0)
    algorithm = ReviewKD(options, Shapes(student, (teacher,), (), 2, 4, (3, 8, 8))).to(maps["student"][0].dtype)
    ours = {"conv1": "enter", "conv2": "leave", "att_conv.0": "attention"}
    for name, value in parameters_in(inputs).items():
        from_deepest, _, rest = name.partition(".")
        for theirs, mine in ours.items():
            rest = rest.replace(theirs, mine)
        plant(algorithm, f"fusions.{len(algorithm.fusions) - 1 - int(from_deepest)}.{rest}", value)
    return Answer(review_kd_loss(algorithm.review(maps["student"]), maps["teacher"]))


def at_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    return Answer(at_loss(numbered(inputs, "student_features"), numbered(inputs, "teacher_features"), hyper["p"]))


# --- relations ------------------------------------------------------------------------------


def rkd_terms(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Distance and angle term, summed over the embeddings of a case."""
    pairs = [
        (student.flatten(1), teacher.flatten(1))
        for student, teacher in zip(
            numbered(inputs, "student_features"), numbered(inputs, "teacher_features"), strict=True
        )
    ]
    distance = torch.stack([rkd_distance_loss(*pair) for pair in pairs]).sum()
    return distance, torch.stack([rkd_angle_loss(*pair) for pair in pairs]).sum()


def rkd_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    distance, angle = rkd_terms(inputs)
    return Answer(hyper["w_d"] * distance + hyper["w_a"] * angle)


def rkd_distance_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    return Answer(rkd_terms(inputs)[0])


def rkd_angle_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    return Answer(rkd_terms(inputs)[1])


def crd_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    student, teacher = inputs["student_features"], inputs["teacher_features"]
    options = CRD.Options(
        dim=hyper["feat_dim"], negatives=hyper["nce_k"], temperature=hyper["nce_t"], momentum=hyper["nce_m"]
    )
    widths = [ModelShapes((), features.flatten(1).shape[1], 2) for features in (student, teacher)]
    crd = CRD(options, Shapes(widths[0], (widths[1],), (), 2, hyper["n_data"], (3, 8, 8))).to(student.dtype)
    for name, value in parameters_in(inputs).items():
        plant(crd, name.replace("embed_s", "student_embedding").replace("embed_t", "teacher_embedding"), value)
    crd.student_bank.copy_(inputs["state_memory_v1"])
    crd.teacher_bank.copy_(inputs["state_memory_v2"])
    for step in [f"_step{i}" for i in range(1, hyper["steps"])]:
        crd_step(crd, inputs, step)
    loss = crd.contrast(*embeddings_of(inputs, ""), inputs["aux_contrast_idx"])
    after = copy.deepcopy(crd)  # the graph of the loss still needs the banks as they are
    crd_step(after, inputs, "")
    z = after.log_normalisers.exp()
    banks = {"out_memory_v1_after": after.student_bank, "out_memory_v2_after": after.teacher_bank}
    return Answer(loss, {"out_z_v1": z[0], "out_z_v2": z[1], **banks})


def embeddings_of(inputs: Inputs, step: str) -> tuple[Tensor, Tensor]:
    return inputs[f"student_features{step}"].flatten(1), inputs[f"teacher_features{step}"].flatten(1)


def crd_step(crd: CRD, inputs: Inputs, step: str) -> None:
    """What CRD.update does, with the candidates of the case."""
    crd.normalise(*embeddings_of(inputs, step), inputs[f"aux_contrast_idx{step}"])
    crd.remember(*embeddings_of(inputs, step), inputs[f"aux_index{step}"])


def irg_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    first, second = ((inputs[f"{who}_fm1"], inputs[f"{who}_fm2"]) for who in ("student", "teacher"))
    layers = [(*maps, inputs[f"{who}_features"]) for who, maps in (("student", first), ("teacher", second))]
    vertex = irg_vertex_loss(inputs["student_logits"], inputs["teacher_logits"])
    edge, transformation = irg_edge_loss(*layers), irg_transformation_loss(first, second)
    return Answer(hyper["w_vert"] * vertex + hyper["w_edge"] * edge + hyper["w_tran"] * transformation)


# --- several teachers -----------------------------------------------------------------------


def mt_avg_softout_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    teachers = numbered(inputs, "teacher_logits")
    return Answer(mt_average_outputs_loss(inputs["student_logits"], teachers, hyper["temperature"]))


def mt_avg_loss_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    teachers = numbered(inputs, "teacher_logits")
    return Answer(mt_average_losses_loss(inputs["student_logits"], teachers, hyper["temperature"]))


def ca_mkd_logits_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    teachers, targets = numbered(inputs, "teacher_logits"), inputs["targets"]
    loss = ca_mkd_logits_loss(inputs["student_logits"], teachers, targets, hyper["temperature"])
    return Answer(loss, {"out_weights": ca_mkd_weights(teachers, targets)})


def ca_mkd_inter_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    student, teacher = numbered(inputs, "student_features"), numbered(inputs, "teacher_features")
    heads, targets = numbered(inputs, "student_head_logits"), inputs["targets"]
    loss = ca_mkd_feature_loss(student, teacher, heads, targets)
    return Answer(loss, {"out_weights": ca_mkd_weights(heads, targets)})


# --- other schemes --------------------------------------------------------------------------


def takd_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    # One step of the chain is kd; the authors average over classes too, which the weight makes up for.
    share, classes = hyper["lambda"], inputs["student_logits"].shape[1]
    kd = soft_target_loss(inputs["student_logits"], inputs["teacher_logits"], temperature=hyper["temperature"])
    task = F.cross_entropy(inputs["student_logits"], inputs["targets"])
    return Answer((1 - share) * task + share / classes * kd)


def dml_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    others = numbered(inputs, "student_logits")
    own = others.pop(hyper["student_index"])
    return Answer(F.cross_entropy(own, inputs["targets"]) + dml_loss(own, others))


def one_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    ensemble, targets = inputs["student_logits_ensemble"], inputs["targets"]
    branches = [inputs[f"student_logits_{i}"] for i in (1, 2, 3)]
    task = torch.stack([F.cross_entropy(own, targets) for own in (*branches, ensemble)]).sum()
    kl = hyper["consistency_weight"] * one_loss(branches, ensemble, hyper["temperature"])
    return Answer(task + kl, {"out_loss_kl": kl})


def byot_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    temperature, targets = hyper["temperature"], inputs["targets"]
    logits, embeddings = (
        [inputs[f"student_{what}_{which}"] for which in ("1", "2", "3", "final")] for what in ("logits", "feature")
    )
    task = torch.stack([F.cross_entropy(own, targets) for own in logits]).sum()
    # The reference has the cross-entropy form, larger by the entropy of the deepest classifier for each exit.
    entropy = torch.special.entr(F.softmax(logits[-1].detach() / temperature, dim=1)).sum(1).mean()
    soft = byot_soft_label_loss(logits[:-1], logits[-1], temperature) + 3 * temperature**2 * entropy
    # It leaves out what is positive in neither embedding; after a ReLU that is 0 in both. It sums over the batch.
    hints = [byot_hint_loss([positive(own, embeddings[-1])], positive(embeddings[-1], own)) for own in embeddings[:-1]]
    hint = len(targets) * torch.stack(hints).sum()
    return Answer((1 - hyper["alpha"]) * task + hyper["alpha"] * soft + hyper["beta"] * hint)


def positive(values: Tensor, others: Tensor) -> Tensor:
    """``values``, but 0 where neither they nor ``others`` are positive."""
    return torch.where((values > 0) | (others > 0), values, torch.zeros_like(values))


def sad_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    return Answer(sad_loss(numbered(inputs, "student_features"), train_target=True))


def adv_discriminator_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    objective = {"hinge": "hinge", "wgan-gp": "wgan"}[hyper["type"]]
    return Answer(adversarial_logits_discriminator_loss(inputs["student_d_out"], inputs["teacher_d_out"], objective))


def adv_generator_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    return Answer(adversarial_logits_student_loss(inputs["student_d_out"]))


def dafl_generator_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    terms = {
        "oh": dafl_one_hot_loss(inputs["teacher_logits"]),
        "act": dafl_activation_loss(inputs["teacher_features"]),
        "balance": dafl_balance_loss(inputs["teacher_logits"]),
    }
    total = sum(hyper[name] * term for name, term in terms.items())
    return Answer(total, {f"out_loss_{name}": term for name, term in terms.items()})


def deep_inversion_bn_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    stems = ("student_features", "state_running_mean", "state_running_var")
    return Answer(batch_norm_gap_loss(zip(*(numbered(inputs, stem) for stem in stems), strict=True)))


def adi_js_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    logits = inputs["student_logits"], inputs["teacher_logits"]
    return Answer(deep_inversion_disagreement_loss(*logits), {"out_js": deep_inversion_divergence(*logits)})


def image_tv_prior_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    return Answer(total_variation_loss(inputs["student_images"], hyper["kind"]))


def zskt_generator_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    return Answer(-zskt_divergence_loss(inputs["student_logits"], inputs["teacher_logits"], hyper["temperature"]))


def zskt_student_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    kd = zskt_divergence_loss(inputs["student_logits"], inputs["teacher_logits"], hyper["temperature"])
    attention = zskt_attention_loss(numbered(inputs, "student_features"), numbered(inputs, "teacher_features"))
    return Answer(kd + hyper["at_beta"] * attention)


# --- lifelong -------------------------------------------------------------------------------


def lwf_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    # The reference mixes 1e-5 of the uniform distribution into the student's.
    return Answer(lwf_loss(inputs["student_logits"], inputs["teacher_logits"], hyper["temperature"], smoothing=1e-5))


def lwf_plain_adapter(inputs: Inputs, hyper: Hyper) -> Answer:
    return Answer(lwf_loss(inputs["student_logits"], inputs["teacher_logits"], hyper["temperature"]))


ADAPTERS: dict[str, Callable[[Inputs, Hyper], Answer]] = {
    "adi_js": adi_js_adapter,
    "adv_discriminator": adv_discriminator_adapter,
    "adv_generator": adv_generator_adapter,
    "at": at_adapter,
    "byot": byot_adapter,
    "camkd_inter": ca_mkd_inter_adapter,
    "camkd_logits": ca_mkd_logits_adapter,
    "crd": crd_adapter,
    "dafl_generator": dafl_generator_adapter,
    "deepinversion_bn": deep_inversion_bn_adapter,
    "dist": dist_adapter,
    "dkd": dkd_adapter,
    "dml": dml_adapter,
    "fitnet": fitnet_adapter,
    "hint_mse": hint_mse_adapter,
    "image_tv_prior": image_tv_prior_adapter,
    "irg": irg_adapter,
    "kd": kd_adapter,
    "kd_ce_form": kd_ce_form_adapter,
    "kd_hybrid": kd_hybrid_adapter,
    "lwf": lwf_adapter,
    "lwf_plain": lwf_plain_adapter,
    "mt_avg_loss": mt_avg_loss_adapter,
    "mt_avg_softout": mt_avg_softout_adapter,
    "one": one_adapter,
    "reviewkd": review_kd_adapter,
    "reviewkd_hcl": review_kd_hcl_adapter,
    "rkd": rkd_adapter,
    "rkd_angle": rkd_angle_adapter,
    "rkd_distance": rkd_distance_adapter,
    "sad": sad_adapter,
    "takd": takd_adapter,
    "zskt_generator": zskt_generator_adapter,
    "zskt_student": zskt_student_adapter,
}
