"""What the HAL suite is worth: each wrong driver is refused by the check meant for it, and no right one by any of those checks."""
from __future__ import annotations

import pytest
from haian.conformance import hal_mutants
from haian.conformance.hal_checks.images import compiler
from haian.conformance.hal_runner import check_driver, hal_cases

BROKEN = ("AttributeError", "KeyError", "NameError", "TypeError", "UnboundLocalError", "RecursionError", "ImportError")


def test_every_mutant_is_refused_by_its_own_check():
    found = hal_mutants.run(others=False, workers=6)
    left = [f"{k.mutant.name} ({k.mutant.story}): check {k.mutant.killed_by}{'' if k.offered else ' was not offered'}" for k in found if not k.own]
    assert not left, "\n".join(left)
    assert len(found) == sum(m.base != "inline" or bool(compiler()) for m in hal_mutants.MUTANTS.values()) >= 60
    for k in found:  # a mutant that breaks down proves nothing about the check
        assert not k.message.startswith(BROKEN), (k.mutant.name, k.message)
        assert "a queued task raised" not in k.message or "on purpose" in k.message, (k.mutant.name, k.message)


def test_mutants_cover_the_suite():
    mutants = hal_mutants.MUTANTS.values()
    covered = {m.killed_by for m in mutants}
    assert covered == set(range(1, 73))
    assert {m.base for m in mutants} == set(hal_mutants.BASES)
    assert len({m.story for m in mutants if m.base != "inline"}) == sum(m.base != "inline" for m in mutants)


@pytest.mark.parametrize("base", hal_mutants.BASES)
def test_the_unchanged_driver_is_refused_by_none_of_these_checks(base):
    if base == "inline" and not compiler():
        pytest.skip("no C compiler")
    numbers = {m.killed_by for m in hal_mutants.MUTANTS.values() if m.base == base} - {36}  # which needs more memory than the small simulator's
    lines = check_driver(hal_mutants.make, (base,), chosen=hal_mutants.cases_of(*numbers))
    assert not [f"{x['id']}: {x['result']} {x['message']}" for x in lines if x["result"] != "pass"]


@pytest.mark.parametrize("name", [c.__name__ for c in hal_mutants.RIGHT])
def test_no_check_refuses_a_right_driver_of_an_unusual_kind(name):
    lines = check_driver(hal_mutants.make, (name,), chosen=hal_cases("L1"))
    assert not [f"{x['id']}: {x['result']} {x['message']}" for x in lines if x["result"] not in ("pass", "not-offered")]


def test_blocks_side_by_side_are_side_by_side():
    driver = hal_mutants.make("Adjacent")
    a, b = driver.alloc(0, 4096), driver.alloc(0, 8192)
    assert a + 4096 == b
    driver.free(0, a)
    assert driver.alloc(0, 256) == a


def test_the_command_says_what_it_found(capsys):
    assert hal_mutants.main(("Microseconds", "ZeroBytes")) == 0
    out = capsys.readouterr().out
    assert "hal/54_elapsed/" in out and "2 of 2 wrong drivers refused" in out
    assert hal_mutants.main(("NoSuchMutant",)) == 2
