"""What a vendor says in adapters/<vendor>/conformance.toml: gaps, expected failures, tolerances, declared precision.

Everything said there stands on top of the report.  Patterns are case ids (``softmax/f64/*``) or operator names (``mm*``); checks of the HAL suite are meant by id or number
(``hal/34_peer/*``, ``34``).

    adapter = "mychip"

    [not_offered]                         # permanent: pattern = reason
    "*/f64/*" = "no double precision units"

    [expected_failure]                    # temporary: an unexpected pass fails the run, and so does a failure after ``until``
    "softmax/bf16/*" = { reason = "driver 1.2 rounds exp to bf16", until = "2027-01-31" }

    [tolerance]                           # every budget of these cases times ``factor``
    "sin/f32/*" = { reason = "hardware sine", factor = 2.0 }

    [precision]                           # replaces what the driver's capabilities say
    matmul = "tf32"
    subnormals = "flushed"
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hal import registry
from ..hal.errors import ArgumentError, HaianError
from .cases import Case, matching
from .compare import REDUCED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
if TYPE_CHECKING:
    from .hal_runner import HalCase

__all__ = ["Allowances", "Rule", "beside", "load", "read"]

_TABLES = ("not_offered", "expected_failure", "tolerance", "precision")
_PRECISION = {"matmul": tuple(filter(None, REDUCED)), "subnormals": ("flushed", "kept")}


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of the file."""

    cases: str
    reason: str
    until: datetime.date | None = None
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Allowances:
    """The file as data."""

    not_offered: tuple[Rule, ...] = ()
    expected_failure: tuple[Rule, ...] = ()
    tolerance: tuple[Rule, ...] = ()
    precision: dict[str, str] = dataclasses.field(default_factory=dict)

    def missing(self, case: Case | HalCase) -> str:
        """Why the vendor does not offer a case, "" where it does."""
        rule = _first(self.not_offered, case)
        return rule.reason if rule else ""

    def failure(self, case: Case | HalCase, today: datetime.date | None = None) -> str:
        """Why a case is expected to fail; "" where it is not, or no longer."""
        day = today or datetime.date.today()
        rule = _first([r for r in self.expected_failure if r.until and day <= r.until], case)
        return f"{rule.reason} (until {rule.until})" if rule else ""

    def factor(self, case: Case | HalCase) -> float:
        rule = _first(self.tolerance, case)
        return rule.factor if rule else 1.0

    def capabilities(self, facts: Any) -> Any:
        """The driver's capabilities with the declared precision in their place."""
        changed: dict[str, Any] = {}
        if "matmul" in self.precision:
            changed["reduced_matmul"] = self.precision["matmul"]
        if "subnormals" in self.precision:
            changed["flushes_subnormals"] = self.precision["subnormals"] == "flushed"
        return dataclasses.replace(facts, **changed) if changed else facts

    def summary(self) -> list[dict[str, str]]:
        """Every rule as a row: kind, cases, what."""
        rows = []
        for kind in ("not_offered", "expected_failure", "tolerance"):
            for r in getattr(self, kind):
                extra = f"; until {r.until}" if r.until else f"; budgets times {r.factor:g}" if r.factor != 1 else ""
                rows.append({"kind": kind.replace("_", " "), "cases": r.cases, "what": r.reason + extra})
        return rows + [{"kind": "precision", "cases": k, "what": v} for k, v in self.precision.items()]


def _first(rules: Iterable[Rule], case: Case | HalCase) -> Rule | None:
    return next((r for r in rules if (matching(case, (r.cases,)) if isinstance(case, Case) else case.matches(r.cases))), None)


def read(path: Path) -> Allowances:
    """The file at ``path``.

    Raises:
        ArgumentError: not TOML, an unknown table, or a rule without its reason or day.
    """
    where = f"{path.name} of {path.parent.name}"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ArgumentError(f"{where}: {error}; the form stands in conformance/allowances.py") from error
    data.pop("adapter", None)
    unknown = sorted(set(data) - set(_TABLES))
    if unknown:
        raise ArgumentError(f"{where}: unknown table {unknown[0]!r}; it has {', '.join(_TABLES)}")
    for key, value in data.get("precision", {}).items():
        if value not in _PRECISION.get(key, ()):
            options = "; ".join(f"{k}: {', '.join(v)}" for k, v in _PRECISION.items())
            raise ArgumentError(f"{where}: precision {key} = {value!r}; knows {options}")
    not_offered, expected_failure, tolerance = (
        tuple(_rule(where, kind, cases, value) for cases, value in data.get(kind, {}).items()) for kind in _TABLES[:3]
    )
    return Allowances(not_offered, expected_failure, tolerance, dict(data.get("precision", {})))


def _rule(where: str, kind: str, cases: str, value: Any) -> Rule:
    said = f"{where}: {kind} {cases!r}"
    fields = {"reason": value} if isinstance(value, str) else dict(value)
    if not str(fields.get("reason", "")).strip():
        raise ArgumentError(f"{said} has no reason; say why")
    until, factor = None, 1.0
    if kind == "expected_failure":
        try:
            until = datetime.date.fromisoformat(str(fields.get("until")))
        except ValueError:
            raise ArgumentError(f"{said}: until is {fields.get('until')!r}; needs a day such as 2027-01-31") from None
    if kind == "tolerance":
        factor = float(fields.get("factor", 0))
        if not 1 <= factor <= 1000:
            raise ArgumentError(f"{said}: factor {factor:g}; needs a number from 1 to 1000")
    return Rule(cases, str(fields["reason"]), until, factor)


def beside(adapter: Path) -> Path | None:
    """The conformance.toml of an adapter given as a path (a .so, a .py, a folder, a project): beside its file."""
    try:
        folders = [registry.adapter_file(adapter).parent]
    except HaianError:  # not built yet, or two .so files: the rules may be read all the same
        folders = []
    folders.append(adapter if adapter.is_dir() else adapter.parent)
    return next((f / "conformance.toml" for f in folders if (f / "conformance.toml").is_file()), None)


def _of(path: Path, adapter: Path, vendor: str) -> bool:
    """Whether the rules beside an adapter's file are a vendor's: its line ``adapter = "..."`` says so, else the file's name."""
    try:
        named = tomllib.loads(path.read_text(encoding="utf-8")).get("adapter")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        named = None  # broken: an error for the device it belongs to, raised by read
    return named == vendor if named else vendor in registry._words(adapter) | {adapter.name, adapter.parent.name}


def load(device: str) -> Allowances:
    """The allowances of a device's adapter; none where it has no such file.

    An adapter of haian's own or of an installed package has them in its package, one of HAIAN_ADAPTER_PATH beside its file
    (named by ``adapter = "mychip"`` in them where the file is not called after the driver).
    """
    vendor = device.partition(":")[0]
    own = f"haian.adapters.{vendor}"
    packages = [own, *(point.value.partition(":")[0].partition(".")[0] for name, point in registry.installed().items() if name == vendor)]
    for package in packages:  # found by name, read as data: no adapter is imported
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or ()) if found is not None else ():
            path = Path(folder) / "conformance.toml"
            if path.exists():
                return read(path)
    for adapter in registry._adapter_files():
        rules = beside(adapter)
        if rules is not None and _of(rules, adapter, vendor):
            return read(rules)
    return Allowances()
