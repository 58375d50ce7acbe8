"""One self-contained HTML page in two languages: header facts, sections, tables, figures.

No file beside it, no network, readable without JavaScript (English then).  Not here: what stands in a report
(conformance/report.py, bench/report.py) and plots (svg.py).
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Cell", "Facts", "Figure", "Note", "Section", "Table", "Text", "lacking", "render", "unwritable"]


@dataclass(frozen=True)
class Text:
    """A sentence in English and Chinese; a plain string where both are the same."""

    en: str
    zh: str = ""


@dataclass(frozen=True)
class Cell:
    """A table cell with a kind: good, bad, warn or "" (its colour), and a number to sort by (default: the text)."""

    text: object
    kind: str = ""
    order: float | None = None


@dataclass(frozen=True)
class Table:
    """columns: names; rows: sequences of str, number, Text or Cell; numbers: columns aligned to the right, by position.

    filterable adds a search box over the rows.
    """

    columns: Sequence[object]
    rows: Sequence[Sequence[object]]
    numbers: Sequence[int] = ()
    filterable: bool = False


@dataclass(frozen=True)
class Facts:
    """Name and value pairs: the head of a report."""

    pairs: Sequence[tuple[object, object]]


@dataclass(frozen=True)
class Note:
    """A paragraph; kind good, bad, warn or ""."""

    text: object
    kind: str = ""


@dataclass(frozen=True)
class Figure:
    """An SVG (from svg.py) with its caption."""

    svg: str
    caption: object = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; folded sections open by a click."""

    title: object
    blocks: Sequence[object] = field(default_factory=tuple)
    folded: bool = False


_CSS = """
:root{--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--paper:#fff;--band:#f6f8fa;--good:#116329;--bad:#b31d28;--warn:#8a5a00}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#30363d;--paper:#0d1117;--band:#161b22;--good:#56d364;--bad:#ff7b72;--warn:#e3b341}}
*{box-sizing:border-box}body{margin:0 auto;max-width:72rem;padding:1.5rem;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,"Noto Sans CJK SC",sans-serif}
h1{font-size:1.6rem;margin:.2rem 0}h2{font-size:1.15rem;margin:1.8rem 0 .5rem}.sub{color:var(--soft);margin:0 0 1rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;width:100%}th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{background:var(--band);cursor:pointer;white-space:nowrap;position:sticky;top:0}.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}.warn{color:var(--warn)}p.good,p.bad,p.warn{border-left:4px solid;padding:.4rem .8rem;background:var(--band)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:0}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
figure{margin:1rem 0}figcaption{color:var(--soft);font-size:13px}svg{max-width:100%;height:auto}summary{cursor:pointer}summary h2{display:inline}
.switch{float:right}button,input{font:inherit;color:inherit;background:var(--band);border:1px solid var(--line);border-radius:6px;padding:.15rem .6rem}
input{margin:.3rem 0;width:20rem;max-width:100%}code{font:12px/1.4 ui-monospace,monospace}html[lang=en] .zh,html[lang=zh] .en{display:none}
"""

_JS = """
document.querySelector('.switch').onclick=()=>{const h=document.documentElement;h.lang=h.lang==='en'?'zh':'en'};
document.querySelectorAll('table').forEach(t=>{t.querySelectorAll('th').forEach((th,i)=>{let up=false;th.onclick=()=>{up=!up;
const key=r=>{const c=r.children[i],v=c.dataset.order??c.textContent,n=parseFloat(v);return isNaN(n)?v:n};
const rows=[...t.tBodies[0].rows].sort((a,b)=>{const x=key(a),y=key(b);return (x>y?1:x<y?-1:0)*(up?1:-1)});t.tBodies[0].append(...rows)}});
const box=t.parentElement.previousElementSibling;if(box&&box.tagName==='INPUT')box.oninput=()=>{const q=box.value.toLowerCase();
[...t.tBodies[0].rows].forEach(r=>r.hidden=!r.textContent.toLowerCase().includes(q))}});
"""

_TEMPLATE = """{% macro say(t) %}{% if t.zh is defined and t.zh %}<span class="en">{{ t.en }}</span><span class="zh">{{ t.zh }}</span>{% elif t.en is defined %}{{ t.en }}{% else %}{{ t }}{% endif %}{% endmacro %}
{% macro cell(c, num) %}{% set plain = c.kind is not defined %}<td{% if num or (not plain and c.kind) %} class="{{ 'num ' if num }}{{ '' if plain else c.kind }}"{% endif %}{% if not plain and c.order is not none %} data-order="{{ c.order }}"{% endif %}>{{ say(c if plain else c.text) }}</td>{% endmacro %}
{% macro block(b) %}{% if b.columns is defined %}{% if b.filterable %}<input type="search" placeholder="filter / 筛选">{% endif %}<div class="wide"><table><thead><tr>
{%- for c in b.columns %}<th{% if loop.index0 in b.numbers %} class="num"{% endif %}>{{ say(c) }}</th>{% endfor %}</tr></thead><tbody>
{%- for r in b.rows %}<tr>{% for c in r %}{{ cell(c, loop.index0 in b.numbers) }}{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% elif b.pairs is defined %}<dl>{% for k, v in b.pairs %}<dt>{{ say(k) }}</dt><dd>{{ say(v) }}</dd>{% endfor %}</dl>
{%- elif b.svg is defined %}<figure>{{ b.svg | safe }}{% if b.caption %}<figcaption>{{ say(b.caption) }}</figcaption>{% endif %}</figure>
{%- else %}<p{% if b.kind %} class="{{ b.kind }}"{% endif %}>{{ say(b.text) }}</p>{% endif %}{% endmacro %}
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><title>{{ title.en if title.en is defined else title }}</title>
<style>{{ css | safe }}</style></head><body><button class="switch" type="button">中文 / English</button>
<h1>{{ say(title) }}</h1>{% if subtitle %}<p class="sub">{{ say(subtitle) }}</p>{% endif %}
{% for s in sections %}{% if s.folded %}<details><summary><h2>{{ say(s.title) }}</h2></summary>{% else %}<section>{% if s.title %}<h2>{{ say(s.title) }}</h2>{% endif %}{% endif %}
{% for b in s.blocks %}{{ block(b) }}
{% endfor %}{% if s.folded %}</details>{% else %}</section>{% endif %}
{% endfor %}<script>{{ js | safe }}</script></body></html>
"""


def lacking() -> str:
    """What must be installed before a page can be made; "" where nothing is missing."""
    return "" if importlib.util.find_spec("jinja2") else "a report's page needs jinja2, which is not installed"


def unwritable(folder: str | os.PathLike[str]) -> str:
    """Why a report cannot go to a folder, which is made where it is not there; "" where it can."""
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"{os.fspath(folder)} cannot hold a report ({error.strerror}); name a folder that you may write to"
    return ""


def render(title: Any, sections: Iterable[Section], subtitle: Any = "") -> str:
    """The page as HTML text.

    Args:
        title, subtitle: str or Text.
        sections: in order; the first is seen first.

    Raises:
        ImportError: jinja2 is missing (extras ``conformance`` and ``bench`` bring it).
    """
    import jinja2

    env = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return (
        env.from_string(_TEMPLATE)
        .render(title=title, subtitle=subtitle, sections=list(sections), css=_CSS, js=_JS)
        .strip()
        + "\n"
    )
