"""Data sets of images, and the small networks that distillation papers are measured on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdzoo.api import hookimpl


@hookimpl
def register_models(register: Callable[[Any], Any]) -> None:
    from kdzoo.api.models import ModelFamily
    from kdzoo_vision import (
        cifar_mobilenet,
        cifar_resnet,
        cifar_shufflenet,
        cifar_vgg,
        cifar_wrn,
        plain_cnn,
        sensor_cnn,
    )

    for name, models, description in (
        ("cifar_resnet", cifar_resnet.models, "residual networks of depth 6n + 2"),
        ("cifar_wrn", cifar_wrn.models, "wide residual networks of depth 6n + 4"),
        ("cifar_vgg", cifar_vgg.models, "VGG with one linear layer"),
        ("cifar_mobilenet", cifar_mobilenet.models, "MobileNetV2 of half width"),
        ("cifar_shufflenet", cifar_shufflenet.models, "ShuffleNet, first and second version"),
        ("plain_cnn", plain_cnn.plain_models, "plain CNNs of 2 to 10 layers"),
        ("digits_cnn", plain_cnn.digits_models, "tiny CNNs for 8 x 8 digits"),
        ("sensor_cnn", sensor_cnn.models, "small CNNs over the time of sensors"),
    ):
        register(ModelFamily(name, models, description))


@hookimpl
def register_datasets(register: Callable[[type], Any]) -> None:
    from kdzoo_vision.arrays import Arrays
    from kdzoo_vision.digits import Digits
    from kdzoo_vision.image_folder import ImageFolder
    from kdzoo_vision.image_list import ImageList
    from kdzoo_vision.standard_sets import Cifar10, Cifar100, FashionMnist, Mnist

    for source in (Arrays, Cifar10, Cifar100, Digits, FashionMnist, ImageFolder, ImageList, Mnist):
        register(source)
