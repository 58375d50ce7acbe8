"""The four minutes with haian: devices, tensors, an operator on two devices, a kernel of your own, a fallback that is counted.

    python examples/tour.py
"""
from __future__ import annotations

import numpy as np

import haian

print("devices:", ", ".join(f"{d.name} ({d.capabilities.model})" for d in haian.devices()))

x = np.random.default_rng(0).standard_normal((4, 1000), dtype="f")
host = haian.ops.softmax(x, -1)
chip = haian.ops.softmax(haian.asarray(x, device="sim:0"), -1)
print("softmax on cpu:0 and sim:0 differ by at most", np.abs(host - chip.numpy()).max())

with haian.device("sim:0").stream() as stream:
    y = haian.ops.exp(haian.asarray(x, device="sim:0"))
    stream.synchronize()
print("exp on a stream:", y.numpy()[0, :3])


# A kernel of a vendor's own: fn(*tensors, **attributes, out), everything on the device; it says what it takes.
haian.register_kernel("tanh", lambda x, *, out: haian.ops.erf(x, out=out), device="sim", dtypes=["float32"], when=lambda specs, attrs, facts:
                      "" if specs[0].size == 3 else "takes 3 elements only", name="tanh__toy")
print(haian.explain(haian.ops.tanh, haian.asarray(x, device="sim:0")))
