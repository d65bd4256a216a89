from __future__ import annotations

import inspect

from torch import nn

import holdfast.norms as norms
from holdfast.norms.examples import examples
from holdfast.norms.make import MAKERS
from holdfast.norms.normaliser import Normaliser
from holdfast.norms.spec import NormSpec


def test_every_name_and_every_class_with_a_name_has_one():
    found = examples()
    assert set(MAKERS) <= set(found)
    classes = {name for name, each in vars(norms).items() if inspect.isclass(each) and issubclass(each, Normaliser)}
    assert classes - {"Norm"} <= set(found)
    for name, module in found.items():
        assert isinstance(module.spec, NormSpec)
        if name not in MAKERS:
            assert type(module).__name__ == name


def test_a_name_of_several_classes_is_that_of_torch():
    found = examples()
    for name, kind in (("layer", "LayerNorm"), ("batch", "BatchNorm2d"), ("instance", "InstanceNorm2d")):
        assert type(found[name]) is getattr(norms, kind)
        assert isinstance(found[name], getattr(nn, kind))
