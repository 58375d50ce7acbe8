"""What a vendor writes: one Runtime, pure data.  How it is read stands in library.py, how it is run in driver.py.

A call is one line of text: the vendor's symbol and the order of its arguments, by the names that the engine passes::

    "copy_async": "suMemcpyAsync(dst, src, n, stream, kind)"       the stream stands before the kind here
    "memset":     "aclrtMemset(ptr, n, value, n)"                  an argument may come twice
    "malloc":     "xpu_malloc(out, n, 0:int)"                      constants, ``:type`` where not unsigned
    "event_new":  "cuEventCreate(out, flags)"
    "elapsed":    "cudaEventElapsedTime_v2|cudaEventElapsedTime(ms, start, end)"   alternates, first found wins
    "error_text": "text hipGetErrorString(code)"                   returns a C string instead of a status

``CALLS`` lists what the engine asks for and the argument names each may use.  A call that a table leaves out, or whose
symbol the library lacks, is absent; the groups of functions that need it are then not offered.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ...hal.errors import HaianError

__all__ = ["CALLS", "Facts", "REQUIRED", "Runtime", "TOGETHER", "TYPES"]

# Argument names and their C types.  Pointers and handles travel as integers of pointer size; names ending in _out and
# those with * are written by the vendor.
TYPES: dict[str, str] = {
    "device": "int", "dst_device": "int", "src_device": "int", "count": "int *", "value_out": "int *", "attribute": "int", "cu_device": "int",
    "out": "uintptr_t *", "ptr": "uintptr_t", "dst": "uintptr_t", "src": "uintptr_t", "n": "size_t", "size": "size_t", "value": "int", "kind": "int",
    "stream": "uintptr_t", "event": "uintptr_t", "start": "uintptr_t", "end": "uintptr_t", "ms": "float *", "flags": "unsigned",
    "context": "uintptr_t", "dst_context": "uintptr_t", "src_context": "uintptr_t", "module": "uintptr_t", "function": "uintptr_t",
    "name": "char *", "text": "char *", "length": "int", "free_out": "size_t *", "total_out": "size_t *", "status": "int *", "code": "int",
    "text_out": "char **", "fn": "void (*)(void *)", "user": "uintptr_t", "image": "void *", "graph": "uintptr_t", "exec": "uintptr_t",
    "gx": "unsigned", "gy": "unsigned", "gz": "unsigned", "bx": "unsigned", "by": "unsigned", "bz": "unsigned", "shared": "unsigned",
    "params": "uintptr_t *", "pitch_d": "size_t", "pitch_s": "size_t", "width": "size_t", "height": "size_t",
}

# Every call the engine knows, with the arguments it passes, in its own order.
CALLS: dict[str, str] = {
    "init": "", "fini": "", "driver_init": "", "driver_version": "value_out", "clear_error": "", "error_text": "code text_out",
    "device_count": "count", "device_get": "value_out device", "set_device": "device", "context_retain": "out cu_device", "context_release": "cu_device", "set_context": "context",
    "device_sync": "", "device_reset": "", "device_name": "text length cu_device", "properties": "text device", "attribute": "value_out attribute cu_device",
    "uuid": "text length cu_device", "mem_info": "free_out total_out", "mem_total": "total_out cu_device",
    "malloc": "out n", "free": "ptr", "host_malloc": "out n", "host_free": "ptr", "managed_malloc": "out n", "host_register": "ptr n",
    "host_unregister": "ptr",
    "copy": "dst src n kind", "copy_async": "dst src n kind stream", "copy_h2d": "dst src n stream", "copy_d2h": "dst src n stream",
    "copy_d2d": "dst src n stream", "copy_peer": "dst dst_device dst_context src src_device src_context n stream",
    "copy_2d": "dst pitch_d src pitch_s width height kind stream",
    "memset": "ptr value n", "memset_async": "ptr value n stream", "memset16": "ptr value n stream", "memset32": "ptr value n stream",
    "stream_new": "out", "stream_destroy": "stream", "stream_sync": "stream", "stream_query": "stream status", "stream_wait": "stream event",
    "host_func": "stream fn user",
    "event_new": "out", "event_new_untimed": "out", "event_destroy": "event", "event_record": "event stream", "event_query": "event status",
    "event_sync": "event", "elapsed": "ms start end",
    "module_load": "out image size", "module_unload": "module", "module_function": "out module name", "launch": (
        "function gx gy gz bx by bz shared stream params"), "set_shared": "function value", "function_attribute": "value_out attribute function",
    "capture_begin": "stream", "capture_end": "stream out", "graph_instantiate": "out graph", "graph_launch": "exec stream", "graph_destroy": "graph",
    "exec_destroy": "exec",
}

# Without these there is no driver at all.
REQUIRED = ("device_count", "malloc", "free", "device_sync")

# Of these, where a table names them, the library has all or none: half of them begins what nothing can end.
TOGETHER = (("context_retain", "context_release", "set_context"),)


@dataclass(frozen=True)
class Facts:
    """What was asked of one device; the functions in a Runtime read it."""

    index: int
    model: str = ""
    text: str = ""  # every printable word of the properties struct, for architecture names
    total_bytes: int = 0
    attributes: Mapping[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return self.attributes[name]

    @property
    def capability(self) -> int:
        """10 * major + minor."""
        return 10 * self.attributes.get("major", 0) + self.attributes.get("minor", 0)


_DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Runtime:
    """One vendor's runtime.  Codes are the vendor's own numbers; attributes map haian's names to the vendor's numbers."""

    name: str
    vendor: str
    libraries: tuple[tuple[str, ...], ...]  # each library by its file names, best first; the first library must be there
    calls: Mapping[str, str]
    own: Mapping[str, str] = field(default_factory=dict)  # arguments of calls beside CALLS, which only this vendor's driver makes
    together: tuple[tuple[str, ...], ...] = ()  # beside TOGETHER: calls of which the library has all or none
    paths: tuple[str, ...] = ()  # folders, "$VARIABLE/lib64" allowed; LD_LIBRARY_PATH and the system's come after them
    only_paths: bool = False  # the file names are also another vendor's: look nowhere else
    by_name: bool = False  # as a last resort ask the dynamic loader by name: the library sits where only it knows
    needs: tuple[str, ...] = ()  # "$VARIABLE" or a path: one of them must be there for the vendor to be
    unless: tuple[str, ...] = ()  # the same: there, another vendor answers to these file names
    visible_devices: str = ""
    query_tool: str = ""
    directions: Mapping[str, int] = field(default_factory=lambda: {"h2d": 1, "d2h": 2, "d2d": 3})
    success: int = 0
    not_ready: frozenset[int] = frozenset({600})
    ready_status: Mapping[str, int] = field(default_factory=dict)  # call -> value of its ``status`` that means complete
    errors: Mapping[int, type[HaianError]] = field(default_factory=dict)
    fatal: frozenset[int] = frozenset()  # the device does not come back without a reset
    texts: Mapping[int, str] = field(default_factory=dict)  # where the runtime has no error text of its own
    ignore: frozenset[int] = frozenset()  # codes of init that mean "done already"
    attributes: Mapping[str, int] = field(default_factory=dict)
    attribute_type: str = "int"  # what the attribute call writes
    defaults: Mapping[str, int] = field(default_factory=dict)  # for attributes that cannot be asked
    align: int = 256  # bytes; what malloc is known to honour
    dtypes: tuple[str, ...] = _DTYPES
    dtypes_math: tuple[str, ...] | None = None  # the same as ``dtypes``
    more_dtypes: Callable[[Facts], tuple[str, ...]] | None = None  # loaded, not computed in
    target: Callable[[Facts], tuple[str, object, int]] | None = None  # triton's (backend, arch, warp size)
    arch: Callable[[Facts], str] | None = None
    formats: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)  # image format -> how it begins; () for any
    default_shared: int = 48 << 10  # bytes a kernel gets without asking
    max_grid_product: int = 2**63 - 1
    block_unit: Callable[[Facts], int] | None = None  # threads in one unit of the launch's block.x; absent: 1
    touch: bool = False  # modules come from a second library that finds no context before the first call of memory
    version: Callable[[int], str] = str  # of the number that driver_version gives
    facts: Mapping[str, object] = field(default_factory=dict)  # further fields of Capabilities, as they stand
    xccl: str = ""  # the vendor's collective library: a name of LIBRARIES in adapters/xccl.py
    unconfirmed: Mapping[str, str] = field(default_factory=dict)  # what in this table no public source settles
