"""The form for phone CPUs: 1x1 convolutions as FULLY_CONNECTED.

Phone GPUs want every layer over channels as a 1x1 convolution, for their compilers fail on a
quantised FULLY_CONNECTED. XNNPACK is the other way round: its fast integer kernels are those of
FULLY_CONNECTED, and they round what enters to 8 bits token by token, where a convolution has one
scale for the whole tensor. On a tensor with channels last, as every CONV_2D takes it, the two are
the same product of the same bytes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nanoflux_export.targets.litert.flatbuffer import code_place, op_kind
from nanoflux_export.targets.litert.template import Template

_DENSE = schema.BuiltinOperator.FULLY_CONNECTED


def with_dense_layers(template: Template) -> Template:
    """A float32 template with every 1x1 convolution of stride 1 as a FULLY_CONNECTED."""
    model = copy.deepcopy(template.model)
    (graph,) = model.subgraphs
    uses = Counter(int(at) for op in graph.operators for at in op.inputs)
    weights = dict(template.weights)
    for op in graph.operators:
        weight = int(op.inputs[1]) if op_kind(model, op) == "CONV_2D" else -1
        if weight not in weights or uses[weight] > 1 or not _over_channels(op, graph.tensors):
            continue
        _make_dense(op, model)
        shape = weights[weight].shape[::3]
        graph.tensors[weight].shape = np.array(shape, np.int32)
        weights[weight] = dataclasses.replace(weights[weight], shape=shape)
    return dataclasses.replace(template, model=model, weights=weights)


def _over_channels(op: Any, tensors: list[Any]) -> bool:
    """Whether a convolution sees one pixel at a time, and all its channels."""
    options, (x, weight) = op.builtinOptions, (tensors[at].shape for at in op.inputs[:2])
    kernel, strides = tuple(weight[1:3]), (options.strideH, options.strideW)
    return kernel == strides == (1, 1) and weight[3] == x[3]


def _make_dense(op: Any, model: Any) -> None:
    code = schema.OperatorCodeT(deprecatedBuiltinCode=_DENSE, version=1, builtinCode=_DENSE)
    op.opcodeIndex = code_place(model.operatorCodes, code)
    activation = op.builtinOptions.fusedActivationFunction
    op.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    op.builtinOptions = schema.FullyConnectedOptionsT(activation, keepNumDims=True)
