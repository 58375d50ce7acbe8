"""The cold half of Tensor: making tensors, views, exchange with NumPy and DLPack, printing.

The type itself (fields, buffer protocol, recycling) is native/py_tensor.c; this file attaches methods to it.
Not here: arithmetic and any computing (operators), dtype promotion (the faces).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _native
from . import geometry, registry
from .driver import Capabilities
from .dtype import ALL, DType
from .dtype import dtype as as_dtype
from .errors import ArgumentError, DTypeError, ShapeError, from_code
from .geometry import MAX_RANK, Geometry
from .memory import copy, host_view, is_readonly

if TYPE_CHECKING:
    from .device import Device

__all__ = ["MAX_RANK", "Tensor", "asarray", "empty", "from_dlpack", "with_geometry"]

Tensor = _native.Tensor

_native.set_dtypes([None] * ALL[0].code + list(ALL))
_native.set_error_factory(from_code)

# Device types of the DLPack specification that are the host's memory: kDLCPU, kDLCUDAHost, kDLROCMHost.
_DL_CPU = 1
_DL_HOST = (1, 3, 11)


# ---- making tensors --------------------------------------------------------------------------------------------------
def _shape(shape: Any, what: str) -> tuple[int, ...]:
    try:
        sizes = (shape.__index__(),) if hasattr(shape, "__index__") else tuple(n.__index__() for n in shape)
    except (AttributeError, TypeError):
        raise ShapeError(f"{what}: shape {shape!r}; needs an integer or a sequence of integers") from None
    if len(sizes) > MAX_RANK:
        raise ShapeError(f"{what}: {len(sizes)} axes; haian tensors have at most {MAX_RANK}, merge some")
    return sizes


def empty(shape: int | Sequence[int], dtype: object = "float32", device: Device | str | int = "cpu") -> Tensor:
    """An uninitialised contiguous tensor.

    Raises:
        ShapeError: a negative size, more than 8 axes, or bytes past 2**63.  DTypeError: no such dtype.
        OutOfMemory: even after giving the cache back.
    """
    sizes, kind, place = _shape(shape, "empty"), as_dtype(dtype), registry.device(device)
    if place.is_host:
        return _native.empty(sizes, kind.code)
    nbytes = math.prod(sizes) * kind.itemsize
    if min(sizes, default=0) < 0 or nbytes >= 2**63:
        raise ShapeError(f"empty: {kind} of shape {sizes} has a negative size or passes 2^63 bytes; give a shape that fits")
    if nbytes == 0:
        return _native.wrap(0, kind.code, sizes, None, place.position, None)
    buffer = place.allocate(nbytes)
    return _native.wrap(buffer.address, kind.code, sizes, None, place.position, buffer)


def asarray(obj: Any, dtype: object = None, device: Device | str | int | None = None, *, copy: bool | None = None) -> Tensor:
    """A tensor of ``obj``: a haian Tensor, a NumPy array (ml_dtypes' types too), anything with ``__dlpack__`` or a
    buffer, or nested lists and scalars (through NumPy, whose dtypes they get).

    Memory is shared wherever dtype, device and layout allow: negative strides too, and read-only arrays stay read-only
    (``Tensor.readonly``).  A change of dtype happens on the host, by NumPy's cast.

    Args:
        dtype: wanted element type; ``obj``'s by default.
        device: wanted device; ``obj``'s by default, the host for what is not a tensor.
        copy: ``True`` always copies, ``False`` never (ArgumentError where a copy is needed), ``None`` where needed.

    Raises:
        DTypeError: an element type haian does not have.  ShapeError: more than 8 axes.
    """
    if isinstance(obj, np.ma.MaskedArray):
        raise ArgumentError("asarray: a masked array; haian tensors have no mask, pass .filled(value) or .data")
    t = _adopt(obj, copy)
    kind = t.dtype if dtype is None else as_dtype(dtype)
    place = t.device if device is None else registry.device(device)
    if kind is not t.dtype:
        if copy is False:
            raise ArgumentError(f"asarray: {t.dtype} to {kind} needs a copy and copy=False was given; drop one of the two")
        with np.errstate(over="ignore", invalid="ignore"):  # out-of-range values become what NumPy's cast makes of them
            t = _from_numpy(t.numpy().astype(kind.numpy), None)
        return t.to(place)
    if place != t.device:
        if copy is False:
            raise ArgumentError(f"asarray: {t.device.name} to {place.name} needs a copy and copy=False was given; drop one of the two")
        return t.to(place)
    return _copied(t) if copy and (isinstance(obj, Tensor) or _shares(obj, t)) else t


def _adopt(obj: Any, copy: bool | None) -> Tensor:
    """``obj`` as a tensor, sharing memory where it can."""
    if isinstance(obj, Tensor):
        return obj
    if isinstance(obj, (np.ndarray, np.generic)):
        return _from_numpy(np.asarray(obj), copy)
    if hasattr(type(obj), "__dlpack__") and hasattr(type(obj), "__dlpack_device__"):  # a class of arrays is no array
        return from_dlpack(obj)
    try:
        obj = memoryview(obj)
    except TypeError:  # no buffer: lists and scalars
        if copy is False:
            raise ArgumentError(f"asarray: a {type(obj).__name__} has no memory to share and copy=False was given; drop it") from None
    try:
        array = np.asarray(obj)
    except ValueError:  # nested lists of different lengths
        raise ShapeError("asarray: nested lists of different lengths; give every row of an axis the same length") from None
    return _from_numpy(array, copy)


def _shares(obj: object, t: Tensor) -> bool:
    return not isinstance(obj, (list, tuple, int, float, complex)) and t.numel > 0


def _from_numpy(array: np.ndarray, copy: bool | None) -> Tensor:
    if array.ndim > MAX_RANK:
        raise ShapeError(f"asarray: {array.ndim} axes; haian tensors have at most {MAX_RANK}, merge some")
    if not array.dtype.isnative:
        if copy is False:
            raise ArgumentError(f"asarray: dtype {array.dtype} is byte-swapped; swapping needs a copy and copy=False was given")
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        kind = as_dtype(array.dtype)
    except DTypeError:
        raise DTypeError(f"asarray: NumPy dtype {array.dtype} is not one of haian's; convert to one of {', '.join(d.name for d in ALL)}") from None
    item = kind.itemsize
    address = array.__array_interface__["data"][0]
    # Views into structured arrays: steps or starts that are no multiple of the element.
    if array.size and (address % _alignment(kind) or any(s % item for n, s in zip(array.shape, array.strides) if n > 1)):
        if copy is False:
            raise ArgumentError(f"asarray: an array of {kind} with strides {array.strides} bytes is misaligned; it needs a copy")
        array = array.copy()
        address = array.__array_interface__["data"][0]
    strides = tuple(s // item if n > 1 else 1 for n, s in zip(array.shape, array.strides))
    return _native.wrap(address, kind.code, array.shape, None if array.flags.c_contiguous else strides, 0, array)


def _alignment(kind: DType) -> int:
    return kind.numpy.alignment


def _copied(t: Tensor) -> Tensor:
    """A contiguous copy on the same device."""
    out = empty(t.shape, t.dtype, t.device)
    copy(out, t)
    return out


def from_dlpack(obj: Any, *, device: Device | str | int | None = None, copy: bool | None = None) -> Tensor:
    """A tensor that shares the memory of any array with ``__dlpack__`` (DLPack 0 and 1).

    Memory on an accelerator is taken over without a copy by the haian device whose driver declares the same DLPack type.

    Args:
        device: where the tensor is wanted; by default where the data is.
        copy: as for ``asarray``.

    Raises:
        ArgumentError: the data is on a device haian does not have.  DTypeError, ShapeError: haian has no such tensor.
        BufferError: the exporter refuses (its own message).
    """
    if isinstance(obj, Tensor):
        return asarray(obj, device=device, copy=copy)
    if not hasattr(type(obj), "__dlpack_device__"):
        raise ArgumentError(f"from_dlpack: a {type(obj).__name__} has no __dlpack_device__; use asarray")
    kind, number = (int(n) for n in obj.__dlpack_device__())
    if kind in _DL_HOST:
        place, stream = registry.device(), None
    else:
        place = _device_of_dlpack(kind, number)
        # The exporter makes this stream wait for its work (Array API).  1 is the default stream of CUDA and ROCm.
        stream = place.current_stream.handle or 1
    try:
        capsule = obj.__dlpack__(stream=stream, max_version=(1, 0))
    except TypeError:  # an exporter from before DLPack 1
        capsule = obj.__dlpack__(stream=stream) if stream else obj.__dlpack__()
    t = _native.from_dlpack(capsule, place.position)
    if device is not None and registry.device(device) != place:
        if copy is False:
            raise ArgumentError(f"from_dlpack: data is on {place.name}; moving it needs a copy and copy=False was given")
        return t.to(device)
    return _copied(t) if copy else t


def _dlpack_of(facts: Capabilities, index: int) -> tuple[int, int] | None:
    """(device type, number) of a device for DLPack: Capabilities.extra["dlpack_type"], the index of its driver."""
    kind = facts.extra.get("dlpack_type")
    return (kind, index) if isinstance(kind, int) else None


def _device_of_dlpack(kind: int, number: int) -> Device:
    for dev in registry.devices():
        if not dev.is_host and _dlpack_of(dev.capabilities, dev.index) == (kind, number):
            return dev
    raise ArgumentError(f"from_dlpack: data is on DLPack device ({kind}, {number}), no haian device is; copy it to the host first "
                        f"(haian has {', '.join(d.name for d in registry.devices())})")


# ---- attached: where and what ----------------------------------------------------------------------------------------
def _device(self: Tensor) -> Device:
    """The Device the elements are on."""
    return registry.at(self.device_index)


def _view(self: Tensor, shape: Sequence[int], strides: Sequence[int] | None, offset: int = 0) -> Tensor:
    """Another tensor on the same memory; ``offset`` in elements."""
    if len(shape) > MAX_RANK:
        raise ShapeError(f"view: {len(shape)} axes; haian tensors have at most {MAX_RANK}")
    address = self.address + offset * self.itemsize if self.numel else self.address
    owner = self.owner
    return _native.wrap(address, self.dtype.code, tuple(shape), strides, self.device_index, self if owner is None else owner)


def _readonly(self: Tensor) -> bool:
    """Whether the memory is a read-only NumPy array's or bytes; operators must not write there."""
    return is_readonly(self)


# ---- attached: to other places ---------------------------------------------------------------------------------------
def to(self: Tensor, device: Device | str | int, *, blocking: bool = True) -> Tensor:
    """The tensor on ``device``: itself when it is there, else a contiguous copy.

    With ``blocking=False`` the copy is only queued in the device's current stream: do not change a host source, nor
    read a host result, before the stream has passed.

    Raises:
        ArgumentError: no such device.  OutOfMemory: it does not fit.
    """
    place = registry.device(device)
    if place == self.device:
        return self
    out = empty(self.shape, self.dtype, place)
    copy(out, self, blocking=blocking)
    return out


def cpu(self: Tensor) -> Tensor:
    """The tensor on the host."""
    return to(self, 0)


def numpy(self: Tensor) -> np.ndarray:
    """A NumPy array: of the same memory on the host, copied down from a device.

    bfloat16 and float8 become ml_dtypes' types.
    """
    return host_view(self if self.device_index == 0 else cpu(self))


def contiguous(self: Tensor) -> Tensor:
    """The tensor itself when its elements lie in row-major order without gaps, else such a copy."""
    return self if self.is_contiguous else _copied(self)


def clone(self: Tensor) -> Tensor:
    """A contiguous copy on the same device."""
    return _copied(self)


def copy_(self: Tensor, src: Any) -> Tensor:
    """Copies ``src``, broadcast and cast to this tensor's dtype, into this tensor; returns it."""
    copy(self, expand(asarray(src, self.dtype), self.shape))
    return self


def _array(self: Tensor, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    array = numpy(self)
    if dtype is not None and np.dtype(dtype) != array.dtype:
        if copy is False:
            raise ValueError(f"a haian tensor of dtype {self.dtype} needs a copy to become {dtype}; drop copy=False")
        return array.astype(dtype)
    return array.copy() if copy and self.device_index == 0 else array


def _dlpack_device(self: Tensor) -> tuple[int, int]:
    """(device type, number) of the DLPack specification.

    Raises:
        BufferError: the device has no type there.
    """
    if self.device_index == 0:
        return (_DL_CPU, 0)
    place = self.device
    found = _dlpack_of(place.capabilities, place.index)
    if found is None:
        raise BufferError(f"{place.name} has no DLPack device type; use .cpu() first")
    return found


def _dlpack(self: Tensor, *, stream: Any = None, max_version: tuple[int, int] | None = None,
            dl_device: tuple[int, int] | None = None, copy: bool | None = None) -> Any:
    """A DLPack capsule, by the request rules of the Array API standard.

    Raises:
        BufferError: what is asked for needs a copy that ``copy=False`` forbids, a device that cannot export, or a
            read-only tensor for a consumer that only knows DLPack 0.
    """
    t = self
    here = None if self.device_index and dl_device else _dlpack_device(self)
    if dl_device is not None and tuple(int(v) for v in dl_device) != here:
        if tuple(int(v) for v in dl_device) != (_DL_CPU, 0):
            raise BufferError(f"__dlpack__: {self.device.name} to DLPack device {tuple(dl_device)}; only the host (1, 0) can be asked for")
        if copy is False and self.device_index:
            raise BufferError(f"__dlpack__: {self.device.name} to the host needs a copy and copy=False was given")
        t = cpu(self)
    elif copy:
        t = _copied(self)
    place = t.device
    kind, number = _dlpack_device(t)
    if place.is_host:
        if stream is not None:
            raise BufferError(f"__dlpack__: stream {stream!r} for host memory; needs None")
    elif stream != -1:  # -1: the consumer asks for no synchronisation
        # Streams of other libraries are not events of ours: finishing our work first is right for any of them.
        place.current_stream.synchronize()
    versioned = max_version is not None and max_version[0] >= 1
    readonly = is_readonly(t)
    if readonly and not versioned:
        raise BufferError("__dlpack__: the tensor is read-only, which DLPack 0 cannot say; ask with max_version=(1, 0) or clone it")
    flags = (1 if readonly else 0) | (2 if t is not self else 0)  # DLPack 1.0: bit 0 read-only, bit 1 copied
    return _native.to_dlpack(t, versioned, kind, number, flags)


# ---- attached: views -------------------------------------------------------------------------------------------------
def _ints(values: tuple[Any, ...]) -> tuple[int, ...]:
    """Arguments given one by one or as one sequence."""
    if len(values) == 1 and not hasattr(values[0], "__index__"):
        values = tuple(values[0])
    return tuple(v.__index__() for v in values)


def _geometry(self: Tensor) -> Geometry:
    return Geometry(self.shape, self.strides)


def with_geometry(self: Tensor, g: Geometry) -> Tensor:
    """The tensor that ``g``, counted from this one's first element, is on this one's memory."""
    return _view(self, g.shape, g.strides, g.offset)


def view(self: Tensor, *shape: Any) -> Tensor:
    """The same elements in row-major order under another shape, same memory; one size may be -1.

    Raises:
        ShapeError: sizes do not multiply to ``numel``, or strides cannot express it (then ``reshape`` copies).
    """
    found = geometry.view(_geometry(self), _ints(shape))
    if not isinstance(found, Geometry):
        raise ShapeError(f"view: {self.shape} with strides {self.strides} has no view of {found}; use reshape, which copies")
    return with_geometry(self, found)


def reshape(self: Tensor, *shape: Any) -> Tensor:
    """The same elements in row-major order under another shape; a view where strides allow, else a copy."""
    found = geometry.view(_geometry(self), _ints(shape), "reshape")
    return with_geometry(self, found) if isinstance(found, Geometry) else _view(_copied(self), found, None)


def permute(self: Tensor, *dims: Any) -> Tensor:
    """A view with axes reordered: axis ``i`` of the result is axis ``dims[i]``."""
    return with_geometry(self, geometry.permute(_geometry(self), _ints(dims)))


def transpose(self: Tensor, dim0: int, dim1: int) -> Tensor:
    """A view with two axes exchanged."""
    return with_geometry(self, geometry.transpose(_geometry(self), dim0, dim1))


def _t(self: Tensor) -> Tensor:
    """The transpose of a matrix, a view.

    Raises:
        ShapeError: not two axes; use ``mT`` or ``permute``.
    """
    if self.ndim != 2:
        raise ShapeError(f"T: {self.ndim} axes; needs 2, use mT for stacks of matrices or permute")
    return transpose(self, 0, 1)


def _mt(self: Tensor) -> Tensor:
    """A view with the last two axes exchanged."""
    if self.ndim < 2:
        raise ShapeError(f"mT: {self.ndim} axes; needs at least 2")
    return transpose(self, -2, -1)


def expand(self: Tensor, *shape: Any) -> Tensor:
    """A view in which axes of size 1, and new ones in front, repeat with stride 0; -1 keeps a size."""
    return with_geometry(self, geometry.expand(_geometry(self), _ints(shape)))


def squeeze(self: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """A view without axes of size 1: all of them, or those named (named axes of other sizes stay)."""
    return with_geometry(self, geometry.squeeze(_geometry(self), None if dim is None else tuple(dim) if isinstance(dim, Sequence) else (dim,)))


def unsqueeze(self: Tensor, dim: int) -> Tensor:
    """A view with a new axis of size 1 at ``dim``."""
    return with_geometry(self, geometry.unsqueeze(_geometry(self), dim))


def _getitem(self: Tensor, key: Any) -> Tensor:
    """A view by basic indexing: integers, slices (negative steps too), ``None`` and ``...``.

    Raises:
        IndexOutOfBounds: an integer outside its axis.  ShapeError: more indices than axes.
        ArgumentError: lists, arrays and masks, which copy: index_select and gather do that.
    """
    keys = key if isinstance(key, tuple) else (key,)
    for k in keys:
        whole = hasattr(k, "__index__") and not isinstance(k, (bool, np.bool_, Tensor)) and not getattr(k, "shape", ())
        if not (k is None or k is Ellipsis or isinstance(k, slice) or whole):
            raise ArgumentError(f"index: a {type(k).__name__}; views take integers, slices, None and '...'; "
                                f"use index_select or gather for lists, arrays and masks")
    return with_geometry(self, geometry.index(_geometry(self), keys))


def _setitem(self: Tensor, key: Any, value: Any) -> None:
    """Copies ``value``, broadcast and cast to the tensor's dtype, into the view that ``key`` names."""
    copy_(_getitem(self, key), value)


# ---- attached: values ------------------------------------------------------------------------------------------------
def item(self: Tensor) -> Any:
    """The only element, as a Python bool, int, float or complex.

    Raises:
        ShapeError: not exactly one element.
    """
    if self.numel != 1:
        raise ShapeError(f"item: {self.numel} elements of shape {self.shape}; needs 1, use tolist or index first")
    return _plain(numpy(self).reshape(()))


def tolist(self: Tensor) -> Any:
    """The elements as nested lists of Python numbers (a number for no axes)."""
    return _plain(numpy(self))


def _plain(array: np.ndarray) -> Any:
    """NumPy's tolist; for ml_dtypes' types, whose scalars are not Python floats, through float32, which holds all of them."""
    return array.astype(np.float32).tolist() if array.dtype.kind == "V" or array.dtype.itemsize == 1 and array.dtype.kind == "f" \
        else array.tolist()


def _len(self: Tensor) -> int:
    if self.ndim == 0:
        raise TypeError("len: a haian tensor without axes has no length; use item")
    return self.shape[0]


def _scalar(kind: Callable[[Any], Any]) -> Callable[[Tensor], Any]:
    def convert(self: Tensor) -> Any:
        return kind(item(self))
    convert.__doc__ = f"The only element as {kind.__name__}."
    return convert


_SHOWN = 1000  # elements printed in full, as NumPy does
_EDGE = 3  # elements shown at each end of an axis beyond that


def _repr(self: Tensor) -> str:
    place = self.device
    head = "haian.tensor("
    if self.numel > _SHOWN:
        # Fetch the corners only: an axis of 2 * _EDGE + 1 elements prints as one whose middle is left out.
        array = _corners(self, 0)
        limit = 0
    else:
        array, limit = numpy(self), _SHOWN
    if self.dtype.kind == "f" and array.dtype.kind != "f" or self.dtype.itemsize == 1 and self.dtype.kind == "f":
        array = array.astype(np.float32)  # ml_dtypes' types print one by one otherwise
    with np.printoptions(threshold=limit, edgeitems=_EDGE):
        text = np.array2string(array, separator=", ", prefix=head)
    shape = f", shape={self.shape}" if self.numel > _SHOWN or self.numel == 0 else ""
    return f"{head}{text}{shape}, dtype={self.dtype}, device={place.name!r})"


def _corners(t: Tensor, axis: int) -> np.ndarray:
    if axis == t.ndim:
        return numpy(t)
    n = t.shape[axis]
    if n <= 2 * _EDGE:
        return _corners(t, axis + 1)
    lead = (slice(None),) * axis
    parts = [_corners(_getitem(t, (*lead, s)), axis + 1) for s in (slice(0, _EDGE + 1), slice(n - _EDGE, n))]
    return np.concatenate(parts, axis)


_ATTACHED: dict[str, object] = {
    "device": property(_device), "readonly": property(_readonly), "T": property(_t), "mT": property(_mt),
    "to": to, "cpu": cpu, "numpy": numpy, "contiguous": contiguous, "clone": clone, "copy_": copy_,
    "view": view, "reshape": reshape, "permute": permute, "transpose": transpose, "expand": expand,
    "squeeze": squeeze, "unsqueeze": unsqueeze, "item": item, "tolist": tolist,
    "__getitem__": _getitem, "__setitem__": _setitem, "__len__": _len, "__repr__": _repr, "__array__": _array,
    "__dlpack__": _dlpack, "__dlpack_device__": _dlpack_device,
    "__bool__": _scalar(bool), "__int__": _scalar(int), "__float__": _scalar(float), "__complex__": _scalar(complex),
}
for _name, _value in _ATTACHED.items():
    setattr(Tensor, _name, _value)
