"""A coded weight as the constant expressions of MIL that a package holds it in.

Each form is the chain of ops that coremltools' own joint compression makes of it:

    palettes              constexpr_lut_to_dense of indices and palettes
    entries in 8 bits     those palettes by constexpr_blockwise_shift_scale of integers
    with a mask           constexpr_lut_to_sparse, then constexpr_sparse_to_dense
    scaled                then constexpr_blockwise_shift_scale, a scale for each output channel
    integers              constexpr_blockwise_shift_scale, a scale for each block
    with a mask           constexpr_sparse_blockwise_shift_scale, then constexpr_sparse_to_dense
    halves with a mask    constexpr_sparse_to_dense

Every op makes half precision. Ops that only others read are called as the weight with a tail after
two underscores, which no weight has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanoflux_export.compression.coding import Coded
from nanoflux_export.targets.coreml.blob import BlobWriter
from nanoflux_export.targets.coreml.protos import in_file, operation, scalar, value_type

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Decoder:
    """An op that turns codes into halves, its twin under a mask, and what both call the codes."""

    dense: str
    codes: str
    sparse: str
    mask: str
    kept: str


_SCALE = "constexpr_blockwise_shift_scale"
_DENSE = "constexpr_sparse_to_dense"
_PALETTES = _Decoder(
    "constexpr_lut_to_dense",
    "indices",
    "constexpr_lut_to_sparse",
    "indices_mask",
    "indices_nonzero_data",
)
_INTEGERS = _Decoder(
    _SCALE, "data", "constexpr_sparse_blockwise_shift_scale", "data_mask", "nonzero_data"
)


def operations(name: str, coded: Coded, blob: BlobWriter) -> tuple[Any, ...]:
    """The ops that make the weight `name`, in order; what they read is in the weight file then."""
    chain = _Chain(name, coded, blob)
    channel_scales = None if coded.luts is None else coded.scales
    dense = name if channel_scales is None else chain.tail("unscaled")
    codes = chain.held(coded.codes, _code_type(coded), coded.codes.shape)
    if coded.luts is not None:
        chain.decoded(dense, codes, _PALETTES, chain.palettes(coded.luts))
    elif coded.scales is not None:
        chain.decoded(dense, codes, _INTEGERS, {"scale": chain.block_scales(coded.scales)})
    else:
        chain.spread(dense, codes, chain.mask())
    if channel_scales is not None:
        scale = chain.held(channel_scales, "fp16", chain.along(len(channel_scales)))
        chain.add(_SCALE, {name: value_type("fp16", coded.shape)}, data=dense, scale=scale)
    return tuple(chain.ops)


def _code_type(coded: Coded) -> str:
    if coded.luts is not None:
        return f"uint{coded.scheme.bits}"
    return "fp16" if coded.scales is None else f"int{coded.scheme.bits}"


@dataclass
class _Chain:
    name: str
    coded: Coded
    blob: BlobWriter
    ops: list[Any] = field(default_factory=list)

    def tail(self, what: str) -> str:
        return f"{self.name}__{what}"

    def along(self, count: int, others: int = 1) -> Shape:
        """`count` on the axis of output channels, `others` on that of input channels."""
        sizes = [1] * len(self.coded.shape)
        sizes[0 if self.coded.axis else 1] = others
        sizes[self.coded.axis] = count
        return tuple(sizes)

    def held(self, values: Any, dtype: str, shape: Shape) -> Any:
        return in_file(dtype, shape, self.blob.add(values, dtype))

    def add(self, kind: str, outputs: Mapping[str, Any], **inputs: Any) -> None:
        self.ops.append(operation(kind, outputs, inputs))

    def mask(self) -> Any:
        """A one for every code there is: of vectors, one for each."""
        assert self.coded.mask is not None
        firsts = range(0, self.coded.shape[self.coded.axis], self.coded.scheme.vector)
        thinned = self.coded.mask.take(firsts, self.coded.axis)
        return self.held(thinned, "uint1", thinned.shape)

    def palettes(self, luts: np.ndarray[Any, Any]) -> dict[str, Any]:
        """The palettes as a lut, and the axis of their vectors."""
        shape = (*self.along(len(luts)), *luts.shape[1:])
        if self.coded.lut_scales is None:
            lut = self.held(luts, "fp16", shape)
        else:
            lut = self.tail("lut")
            scale = self.held(self.coded.lut_scales, "fp16", (*self.along(len(luts)), 1, 1))
            data = self.held(luts, "int8", shape)
            self.add(_SCALE, {lut: value_type("fp16", shape)}, data=data, scale=scale)
        axis = {"vector_axis": scalar("int32", self.coded.axis)} if luts.shape[2] > 1 else {}
        return {"lut": lut, **axis}

    def block_scales(self, scales: np.ndarray[Any, Any]) -> Any:
        """(outputs, blocks) as a tensor of the weight's rank."""
        ordered = scales.T if self.coded.axis else scales
        return self.held(np.ascontiguousarray(ordered), "fp16", self.along(*scales.shape))

    def decoded(self, dense: str, codes: Any, by: _Decoder, settings: Mapping[str, Any]) -> None:
        """Codes made halves, and those laid out under the mask where there is one."""
        if self.coded.mask is None:
            made = {dense: value_type("fp16", self.coded.shape)}
            self.add(by.dense, made, **{by.codes: codes}, **settings)
            return
        mask, values = self.tail("mask"), self.tail("values")
        made = {
            mask: value_type("uint1", self.coded.shape),
            values: value_type("fp16", (self.coded.codes.size * self.coded.scheme.vector,)),
        }
        self.add(by.sparse, made, **{by.mask: self.mask(), by.kept: codes}, **settings)
        self.spread(dense, values, mask)

    def spread(self, dense: str, values: Any, mask: Any) -> None:
        made = {dense: value_type("fp16", self.coded.shape)}
        self.add(_DENSE, made, nonzero_data=values, mask=mask)
