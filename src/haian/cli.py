"""The command line: haian devices | doctor | ops | conformance | bench | adapter.

Exit codes: 0 good, 1 findings (a case failed, an adapter is broken), 2 usage, 3 environment.
Not here: what the commands do; each calls one function of its package.
"""
from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import typer

from . import __version__
from .adapter_cli import adapter_app
from .hal.errors import ArgumentError, HaianError
from .terminal import ENVIRONMENT, FINDINGS, USAGE
from .terminal import size as _bytes
from .terminal import table as _table
from .terminal import usage as _usage

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The layer between AI frameworks and AI chips.  Exit codes: 0 good, 1 findings, 2 usage, 3 environment.", pretty_exceptions_enable=False)
ops_app = typer.Typer(no_args_is_help=True, help="The operator standard: what exists, and one operator's record.")
conformance_app = typer.Typer(no_args_is_help=True, help="Does a device conform?  Run the suite, compare and verify reports.")
bench_app = typer.Typer(no_args_is_help=True, help="How fast is it, against the device's limits and the frameworks' own kernels?")
app.add_typer(ops_app, name="ops")
app.add_typer(conformance_app, name="conformance")
app.add_typer(bench_app, name="bench")
app.add_typer(adapter_app, name="adapter")


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def _face(version: bool = typer.Option(False, "--version", is_eager=True, callback=_version, help="Print the version.")) -> None:
    pass


def _filled(value: str | None) -> str:
    """The text of an option, "" where it was left out; given as '' it would silently mean everything."""
    if value is not None and not value.strip():
        raise typer.BadParameter("is empty; leave the option out, or say which")
    return value or ""


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


@app.command()
def config(cflags: bool = typer.Option(False, "--cflags", help="How a compiler finds haian_ops.h and haian_hal.h."),
           libs: bool = typer.Option(False, "--libs", help="How a linker finds libhaian, also at run time.")) -> None:
    """Print flags for programs in C and C++ that call operators (haian_ops.h) without Python."""
    from . import _native
    folder = Path(_native.__file__).parent
    if not (cflags or libs):
        _usage("config: nothing asked for; give --cflags, --libs or both")
    print(" ".join([f"-I{folder / 'include'}"] * cflags + [f"-L{folder}", "-lhaian", f"-Wl,-rpath,{folder}"] * libs))


@app.command()
def devices(as_json: bool = typer.Option(False, "--json", help="One JSON object a device.")) -> None:
    """List the devices that are there."""
    from .hal.errors import one_line
    from .hal.registry import devices as found
    from .hal.registry import records
    rows: list[dict[str, Any]] = []
    for d in found():
        try:
            facts = d.capabilities
        except Exception as e:  # noqa: BLE001 - somebody's driver: the other devices are there all the same
            rows.append({"device": d.name, "error": f"{type(e).__name__}: {one_line(e)}"})
            continue
        rows.append({"device": d.name, "model": facts.model, "memory_bytes": facts.total_bytes, "streams": facts.streams,
                     "triton": ":".join(str(part) for part in facts.triton_target[:2]) if facts.triton_target else ""})
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        _table(["device", "model", "memory", "streams", "triton"],
               [[r["device"], r["model"], _bytes(r["memory_bytes"]), "async" if r["streams"] else "sync", r["triton"] or "-"] for r in rows if "model" in r])
    for r in rows:
        if "error" in r:
            print(f"haian: {r['device']}: its props failed: {r['error']}; `haian adapter check` says more", file=sys.stderr)
    for record in records():
        if record.status == "failed" and record.error is not None:
            print(f"haian: {record.name} failed: {one_line(record.error)}; `haian doctor` says more", file=sys.stderr)


@app.command()
def doctor(as_json: bool = typer.Option(False, "--json", help="Everything as one JSON object."),
           verbose: bool = typer.Option(False, "--verbose", help="Also every place looked at, missing symbol and unconfirmed fact.")) -> None:
    """Say what haian found on this machine, and what is missing and why; exit code 1 when an adapter is broken."""
    from .doctor import examine, show
    found = examine()
    if as_json:
        print(json.dumps(found, indent=1, default=str))
    else:
        show(found, verbose)
    if any(a["status"] == "failed" for a in found["adapters"]):
        raise typer.Exit(FINDINGS)


# ---- ops ---------------------------------------------------------------------------------------------------------------
def _record(name: str) -> Any:
    from .kernels.ops import OPS
    if name not in OPS:
        import difflib
        near = difflib.get_close_matches(name, OPS, n=3)
        _usage(f"no operator {name!r}; {'did you mean ' + ' or '.join(near) if near else '`haian ops list` names them'}")
    return OPS[name]


def operator_row(record: Any) -> dict[str, Any]:
    """One operator as ``ops list --json`` prints it."""
    from . import _native
    from .conformance.cases import count_cases
    from .kernels.triton import has
    return {"name": record.name, "family": record.family, "schema": record.schema, "dtypes": [d.name for d in record.dtypes],
            "impl": {"c": _native.find_kernel(record.name) is not None, "triton": has(record), "composite": record.composite, "view": record.views},
            "cases": count_cases(record), "grad": record.grad is not None, "aten": list(record.names.get("aten", ())),
            "onnx": list(record.names.get("onnx", ()))}


def _kernels(impl: dict[str, Any]) -> list[str]:
    """The columns C and Triton."""
    word = "view" if impl["view"] else "composite" if impl["composite"] else ""
    return [word] * 2 if word else ["yes" if impl[k] else "-" for k in ("c", "triton")]


@ops_app.command("list")
def ops_list(as_json: bool = typer.Option(False, "--json", help="One JSON list, one object an operator.")) -> None:
    """List all operators with their kernels and cases."""
    from .kernels.ops import OPS
    rows = [operator_row(r) for r in OPS.values()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    _table(["operator", "family", "C", "Triton", "cases", "gradient", "aten"],
           [[r["name"], r["family"], *_kernels(r["impl"]), r["cases"],
             "yes" if r["grad"] else "-", ", ".join(r["aten"][:2])] for r in rows])


@ops_app.command("page")
def ops_page() -> None:
    """Print docs/operators.md: every operator in one page of Markdown."""
    from .operators_page import page
    print(page(), end="")


def _said(budget: Any) -> str:
    """A budget's class and numbers; what is worked out from a call's shapes is named, not printed as a function."""
    fields = [(f.name, getattr(budget, f.name)) for f in dataclasses.fields(budget)]
    return f"{type(budget).__name__}({', '.join(f'{k} by the shapes' if callable(v) else f'{k}={v!r}' for k, v in fields)})"


@ops_app.command("show")
def ops_show(name: str) -> None:
    """Print one operator's record."""
    from .kernels.api import docstring
    record = _record(name)
    row = operator_row(record)
    print(docstring(record))
    print(f"error class: {record.budget.letter} {_said(record.budget)}")
    made = (f"composite: {record.composite}" if record.composite else "a view: no kernel" if record.views else
            f"kernels: C {'yes' if row['impl']['c'] else 'no'}, Triton {'yes' if row['impl']['triton'] else 'no'}")
    print(f"{made}; {row['cases']} cases")
    for sample in record.samples:
        shapes = ", ".join(str(i.shape) if hasattr(i, "shape") else str(i) for i in sample.inputs)
        print(f"  {sample.name:<24} {shapes} {sample.attrs or ''} {sample.model}")


# ---- conformance ---------------------------------------------------------------------------------------------------------
@conformance_app.command("run")
def conformance_run(device: str = typer.Option("cpu:0", help="Device under test, such as cuda:0; with --suite hal also an adapter's file: /opt/x/libx.so:0."),
                    level: str = typer.Option("core", help="core, inference, training, llm or full; with --suite hal L0, L1, L2 or L3, core is all."),
                    suite: str = typer.Option("ops", help="ops (the operators) or hal (the driver: 72 checks)."),
                    ops: str = typer.Option(None, callback=_filled, help="Only these operators or checks, comma separated patterns: 'softmax,mm*', '14,hal/3*'."),
                    case: str = typer.Option(None, callback=_filled, help="Only the case with this id."),
                    shard: str = typer.Option(None, callback=_filled, help="i/n: the i-th of n equal parts."),
                    resume: bool = typer.Option(False, help="Keep the results already in the report."),
                    report: str = typer.Option(None, callback=_filled, help="Folder for report.jsonl, report.xml and index.html."),
                    seed: int = typer.Option(0, help="Seed of the inputs."),
                    timeout_s: float | None = typer.Option(None, help="Time limit of one case in seconds; not given: 60 for operators, 20 for checks.")) -> None:
    """Run the suite on a device; exit code 1 when a case fails, 3 when there is no such device."""
    from .conformance import run
    summary = run(device, level=level, suite=suite, ops=ops, case=case, shard=shard, resume=resume, report=report, seed=seed, timeout_s=timeout_s)
    print(summary)
    if not summary.present:
        raise typer.Exit(ENVIRONMENT)
    if not summary.ok:
        raise typer.Exit(FINDINGS)


@conformance_app.command("list")
def conformance_list(level: str = "core", ops: str = typer.Option(None, callback=_filled), suite: str = typer.Option("ops", help="ops or hal."),
                     as_json: bool = typer.Option(False, "--json")) -> None:
    """List the cases of a level by id."""
    from .conformance import list_cases
    cases = list_cases(level=level, ops=ops, suite=suite)
    print(json.dumps(cases, indent=1) if as_json else "\n".join(cases))


@conformance_app.command("diff")
def conformance_diff(old: Path, new: Path) -> None:
    """Say what changed between two reports; exit code 1 when something got worse, or is no longer there."""
    from .conformance import diff
    text, worse = diff(old, new)
    print(text)
    if worse:
        raise typer.Exit(FINDINGS)


@conformance_app.command("verify")
def conformance_verify(report: Path) -> None:
    """Recompute the level that a report claims; exit code 1 when it does not hold."""
    from .conformance import verify
    text, holds = verify(report)
    print(text)
    if not holds:
        raise typer.Exit(FINDINGS)


# ---- bench -----------------------------------------------------------------------------------------------------------------
@bench_app.command("run")
def bench_run(device: str = "cpu:0", suite: str = typer.Option("quick", help="quick, full, llm or vision."),
              peers: str = typer.Option("torch,numpy,onnxruntime", help="Comma separated; absent ones are skipped and named.  '': none."),
              threads: str = typer.Option("1", help="1, all, or both: 1,all."), ops: str = typer.Option(None, callback=_filled, help="Only these operators, comma separated patterns: 'softmax,mm*'."),
              report: str = typer.Option(None, callback=_filled, help="Folder for bench.json and index.html.")) -> None:
    """Time operators against the device's limits and against peers, interleaved."""
    from .bench import run
    print(run(device, suite=suite, peers=peers, threads=threads, ops=ops, report=report))


@bench_app.command("compare")
def bench_compare(a: Path, b: Path) -> None:
    """Put two bench reports, folders or their bench.json, side by side."""
    from .bench import compare
    print(compare(a, b))


# click's, or typer's own copy of it in later versions: the class that all wrong command lines derive from
_UsageError: Any = typer.BadParameter.__bases__[0]


def _usage_line(error: Any) -> str:
    """What is wrong with a command line, and where the right ones are listed, in one line."""
    text = " ".join(error.format_message().split()).rstrip(".?").replace(". Did you", ", did you")
    path = error.ctx.command_path if error.ctx else "haian"
    return f"{text[:1].lower()}{text[1:]}; `{path} --help` lists what there is"


def main() -> None:
    """Entry point: one-line errors, the exit codes above."""
    try:
        sys.exit(app(prog_name="haian", standalone_mode=False) or 0)
    except _UsageError as error:
        if "\n" in error.format_message():  # `haian bench` and nothing more: its help page
            print(error.format_message(), file=sys.stderr)
        else:
            print(f"haian: {_usage_line(error)}", file=sys.stderr)
        sys.exit(USAGE)
    except typer.Abort:
        sys.exit(130)  # interrupted
    except BrokenPipeError:
        sys.exit(0)
    except ArgumentError as error:
        print(f"haian: {error}", file=sys.stderr)
        sys.exit(USAGE)
    except HaianError as error:  # what was asked for is right; the device, its driver or an installed package is not
        print(f"haian: {error}", file=sys.stderr)
        sys.exit(ENVIRONMENT)
    except ImportError as error:
        print(f"haian: {error}; install the extra that brings it (see `haian doctor`)", file=sys.stderr)
        sys.exit(ENVIRONMENT)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"haian: {where}{error.strerror or error}; `haian doctor` says what there is", file=sys.stderr)
        sys.exit(ENVIRONMENT)


if __name__ == "__main__":
    main()
