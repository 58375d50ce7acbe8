"""What the suite is worth: it kills wrong implementations of every operator and refuses no right one."""
from __future__ import annotations

import pytest
from haian.conformance import mutants, witness
from haian.conformance.runner import run_in_process
from haian.kernels.ops import OPS


def test_mutants_are_killed():
    found = mutants.run()
    survivors = [f"{k.mutant.op}: {k.mutant.wrong}" for k in found if not k.by]
    assert len(found) >= 60 and {m.op for m in mutants.MUTANTS} == set(OPS)
    assert len(survivors) <= 0.05 * len(found), survivors
    assert sum(k.meant for k in found) >= 0.9 * len(found)  # by the check that was meant, not by luck
    for k in found:  # a mutant that breaks down proves nothing about the judge
        assert not k.message.startswith(("AttributeError", "KeyError", "NameError", "IndexError:", "UnboundLocalError")), (k.mutant, k.message)


def refused(target, seed=0):
    lines = run_in_process(target, seed=seed)
    return [f"{x['id']}: {x['message']}" for x in lines if x["result"] not in ("pass", "not-offered")], lines


def test_numpy_is_not_refused():
    bad, lines = refused(witness.numpy_target())
    assert not bad, bad[:5]
    assert all(x["result"] == "pass" or x["id"].endswith("/shares") for x in lines)  # a table has no memory of its own to look at


@pytest.mark.filterwarnings("ignore:var")
def test_torch_is_not_refused():
    pytest.importorskip("torch")
    bad, lines = refused(witness.torch_target())
    assert not bad, bad[:5]
    assert len({x["op"] for x in lines if x["result"] == "pass"}) > 80
