# ruff: noqa: E501
"""The page's Jinja template; a Python module, because a Flower app bundle carries no other kind of file for it."""

import jinja2

from fedrec.metrics import higher_is_better
from fedrec.report.findings import change, count, label, number, plural, size


def rendered(template: str, **values: object) -> str:
    """Return a page of a template."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "size": size, "label": label, "count": count}
    environment.globals |= {"change": change, "higher_is_better": higher_is_better, "plural": plural}
    return environment.from_string(template).render(**values)


PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ leaking ~ ": " if leaking }}{{ option("method", "run") }} on {{ option("dataset", "data") }}: did working together help?</title>
<style>
:root { --paper: #fcfcfb; --card: #fff; --ink: #1b1f24; --muted: #5a6370; --line: #dfe2e6; --ours: #1f6feb; --alone: #a8632a;
  --good: #1a7f4b; --bad: #c4302b; --flat: #6b7480; --care: #9a6700; --good-soft: #e8f5ee; --bad-soft: #fdecea; --care-soft: #fdf5e2; --flat-soft: #f1f3f5; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1b1f25; --ink: #e8eaed; --muted: #a2abb7; --line: #333a43;
  --ours: #6cabff; --alone: #e0a06a; --good: #57c98a; --bad: #ff7b72; --flat: #97a1ad; --care: #e3b341;
  --good-soft: #16291f; --bad-soft: #331a1a; --care-soft: #2c2512; --flat-soft: #22272e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: clamp(1.6rem, 4.5vw, 2.3rem); line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 3.2rem 0 .8rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
p { margin: .5rem 0; } .muted { color: var(--muted); } .small { font-size: .86rem; }
.kicker { color: var(--muted); font-size: .9rem; margin: 0 0 .4rem; }
.words { font-size: 1.18rem; margin: .2rem 0 1rem; }
ul.cards { list-style: none; margin: 1rem 0; padding: 0; display: grid; gap: .6rem; }
.card { background: var(--card); border: 1px solid var(--line); border-left: 5px solid var(--flat); border-radius: 6px; padding: .7rem 1rem; overflow-wrap: anywhere; }
.card p { margin: 0; } .card .numbers { color: var(--muted); font-variant-numeric: tabular-nums; }
.good { border-left-color: var(--good); background: var(--good-soft); } .bad { border-left-color: var(--bad); background: var(--bad-soft); }
.care { border-left-color: var(--care); background: var(--care-soft); } .note, .flat { background: var(--flat-soft); }
.leak { display: inline-block; background: #b3261e; color: #fff; font-size: .62rem; font-weight: 700; letter-spacing: .03em; line-height: 1; padding: .22em .4em; border-radius: 3px; white-space: nowrap; vertical-align: .1em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.4rem; margin: 1rem 0; } dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding: 0 0 .5rem; } th, td { padding: .45rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { font-weight: 600; color: var(--muted); vertical-align: bottom; } th:first-child, td:first-child, .left { text-align: left; }
tbody th { font-weight: 600; white-space: normal; overflow-wrap: anywhere; min-width: 7rem; } tr.all > * { border-top: 2px solid var(--line); background: var(--flat-soft); }
.price small { display: block; white-space: nowrap; font-weight: 400; } .price th small.leak { display: block; width: max-content; font-weight: 700; margin: .2rem 0 0 auto; }
td small { display: block; white-space: pre-line; color: var(--muted); } td.ours { font-weight: 650; } td .leak { display: block; width: min-content; white-space: normal; line-height: 1.15; text-align: center; margin: .2rem 0 0 auto; } td.left .leak { margin-left: 0; }
td.left .tag { display: block; max-width: 8.5rem; white-space: normal; }
tbody th[scope=row] { max-width: 14rem; }
.tag { font-weight: 600; color: var(--flat); } .tag.up { color: var(--good); } .tag.down { color: var(--bad); }
figure { margin: 1.4rem 0; } figure .scroll > svg { display: block; width: 100%; min-width: 34rem; height: auto; font-family: inherit; } figcaption { color: var(--muted); font-size: .88rem; margin-top: .3rem; }
details { margin: .9rem 0; } summary { cursor: pointer; color: var(--ours); } pre { overflow-x: auto; background: var(--flat-soft); padding: 1rem; border-radius: 6px; font-size: .82rem; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .92em; overflow-wrap: anywhere; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; } }
@media print { details > * { display: block; } .card { break-inside: avoid; } }
</style>
</head>
<body>
<main>
{% macro leak() %}{% if leaking %} <strong class="leak">{{ leaking }}</strong>{% endif %}{% endmacro %}
{% macro picture(figure) %}
<figure><div class="scroll" tabindex="0">{{ figure.picture }}</div><figcaption>{{ figure.caption }}</figcaption></figure>
{% endmacro %}
{% macro verdict(row) %}
{% set tone = {"helped": "up", "hurt": "down"}[row.verdict] | default("") %}
<span class="tag {{ tone }}">{{ {"hurt": "lost", "": "not compared"}[row.verdict] | default(row.verdict) }}</span>{% if row.verdict in ("better", "worse", "equal") %}<small>no interval</small>{% endif %}
{% endmacro %}
{% macro table(columns, caption="") %}
<div class="scroll" tabindex="0"><table>{% if caption %}<caption>{{ caption }}</caption>{% endif %}<thead><tr>{% for name in columns.split("|") %}<th scope="col"{% if name[0] == "<" %} class="left"{% endif %}>{{ name.lstrip("<") }}</th>{% endfor %}</tr></thead><tbody>
{{ caller() }}</tbody></table></div>
{%- endmacro %}
{% macro comparison(t) %}
<div class="scroll" tabindex="0"><table>
<caption>{{ t.metric | label }}, task {{ t.task }}{{ ", " ~ t.meaning if t.meaning }}; {{ "higher" if higher_is_better(t.metric) else "lower" }} is better{{ leak() }}
{% if t.cut %}<br>Shown are the {{ t.rows | length - 1 }} clients that fared worst against training alone; {{ "{:,}".format(t.cut) }} others are in <code>clients.csv</code>. All clients:
{% for name, n in t.counts.items() %}{{ "{:,}".format(n) }} {{ name or "not compared" }}{{ ", " if not loop.last else "." }}{% endfor %}{% endif %}</caption>
<thead><tr><th scope="col">Client</th><th scope="col" class="left">Taking part</th><th scope="col">{{ t.unit }}</th><th scope="col">Together</th><th scope="col">Alone</th><th scope="col">Pooled</th><th scope="col">Popularity</th><th scope="col">Of pooled</th></tr></thead>
<tbody>
{% for row in t.rows %}
<tr{% if t.everyone and loop.last %} class="all"{% endif %}><th scope="row">{{ row.client }}</th><td class="left">{{ verdict(row) }}{{ leak() }}</td><td>{{ "{:,}".format(row.users) if row.users else "–" }}</td><td class="ours">{{ row.federated | number }}{{ leak() }}</td>
{% for b in t.baselines %}
{% if b not in baselines %}<td class="muted">not run</td>{% else %}<td>{{ row[b] | number }}<small>{{ change(row[b ~ "_difference"], row[b ~ "_low"], row[b ~ "_high"]) | replace(" [", "\n[") }}{% if not row[b ~ "_users"] %}{{ "\n" }}point only{% endif %}</small>{{ leak() }}</td>{% endif %}
{% endfor %}
<td>{% if row.pooled_share == row.pooled_share %}{{ "{:.0%}".format(row.pooled_share) }}{{ leak() }}{% else %}–{% endif %}</td></tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}

<header>
<p class="kicker">{{ option("method", "run") }} on {{ option("dataset", "data") }}, {{ plural(clients | length, "client") }}, seed {{ option("seed", "?") }}</p>
<h1>{{ headlines | join("; ") or "Did working together help each of them?" }}{% if headlines %}{{ leak() }}{% endif %}</h1>
</header>

{% for a in answers %}
<section aria-label="Answer for task {{ a.task }}">
{% if answers | length > 1 %}<h3>Task {{ a.task }}</h3>{% endif %}
<p class="words">{{ a.words }}{{ leak() }}</p>
{% if a.headlines %}<ul class="cards">
{% for h in a.headlines %}
<li class="card {{ h.tone }}"><p>{{ h.before }} <strong>{{ h.name }}</strong>{{ " " ~ h.after if h.after }}</p><p class="numbers">{{ h.numbers }}{{ leak() }}</p></li>
{% endfor %}
</ul>{% endif %}
{% if a.everyone %}<p class="muted">{{ a.everyone.name }}: {{ a.everyone.numbers }}.{{ leak() }}</p>{% endif %}
{% if a.figure %}{{ picture(a.figure) }}{% endif %}
</section>
{% else %}
<p class="words">Nothing was measured: no client has a test value.</p>
{% endfor %}

{% if warnings %}
<section aria-labelledby="warnings"><h2 id="warnings">Warnings</h2>
<ul class="cards">
{% for w in warnings %}
<li class="card {{ w.tone }}"><p><strong>{{ w.title }}</strong>{% if w.measured %}{{ leak() }}{% endif %}</p><p>{{ w.text }}</p></li>
{% endfor %}
</ul></section>
{% endif %}

<section aria-labelledby="run"><h2 id="run">What was run</h2>
<dl>{% for name, text in facts.items() %}<dt>{{ name }}</dt><dd>{{ text }}</dd>{% endfor %}</dl>
<details><summary>Whole configuration and versions</summary><pre tabindex="0">{{ {"experiment": run.experiment | default({}), "versions": run.versions | default({})} | tojson(indent=2) | forceescape }}</pre></details>
{% if clients %}
<details{% if not many %} open{% endif %}><summary>The clients' data</summary>
{% call table("Client|Users|Items|Train|Validation|Test", "Users, items, and interactions in each split" ~ ("; the first 24 of {:,}".format(clients | length) if many else "")) %}
{% for c in clients[:24] %}<tr><th scope="row">{{ c.name }}</th>{% for part in ("users", "items", "train", "validation", "test") %}<td>{{ "{:,}".format(c[part] | default(0)) }}</td>{% endfor %}</tr>
{% endfor %}
{% endcall %}</details>
{% endif %}
</section>

<section aria-labelledby="comparison"><h2 id="comparison">Together, alone, pooled, popularity</h2>
<p class="muted small">Together: the federated run. Alone: each client trained on its own data only. Pooled: one model on everyone's data, which no client would have.
Popularity: what all clients' training rows say of the items in the client's catalogue; the simulation counts it for this report alone, it is sent to nobody{{ ", and it is not private" if privacy }}.
Under each baseline stands together minus that baseline, the difference of the two numbers shown, with its 95% interval over the client's users, or of a task about items over the held-out items that it carries (one seed).
A ranking metric is the mean over users (paired Student's t); RMSE, log loss, accuracy and AUC are over all test rows of all users, an AUC of all clients the mean over clients (users resampled with all their rows).
“Point only” is the bare difference of two numbers, without an interval. {{ corrected }} In the other tables verdicts are corrected for the number of clients. “Unclear after Holm”: the interval excludes 0, but no longer when corrected.</p>
{% for t in tables if t.primary %}{{ comparison(t) }}{% endfor %}
{% for t in tables if not t.primary %}<details><summary>{{ t.metric | label }}, task {{ t.task }}</summary>{{ comparison(t) }}</details>{% endfor %}
</section>

{% if several %}
<section aria-labelledby="several"><h2 id="several">Several tasks in one client{{ leak() }}</h2>
<p>{{ several.words }}</p>
{% if several.rows %}
<p class="muted small">Each task of a client was also trained in a run of its own: the same method, model, data and seed, and its own choice of the round. The interval is over users (one seed); the verdicts that speak, which are marked, are corrected for their number, clients and tasks (Holm at 5%), the others for the number of clients. A seesaw is a task that lost while another gained. Where a metric has no interval, another one of the task speaks.</p>
{% if several.cut %}<p>{{ "{:,}".format(several.seesaws) }} of {{ "{:,}".format(several.cut) }} clients have a seesaw by themselves; shown are all users.</p>{% endif %}
{% call table("Client|<Task|<Metric|All tasks|Single task|Difference|Users|<By the others") %}
{% for r in several.rows %}<tr><th scope="row">{{ r.client }}</th><td class="left">{{ r.task }}</td><td class="left">{{ r.metric | label }}{{ ", lower is better" if not higher_is_better(r.metric) }}</td><td class="ours">{{ r.together | number }}{{ leak() }}</td><td>{{ r.single | number }}{{ leak() }}</td><td>{{ change(r.difference, r.low, r.high) }}</td><td>{{ "{:,}".format(r.users) if r.users else "–" }}</td><td class="left"><span class="tag {{ {"gained": "up", "lost": "down"}[r.verdict] | default("") if r.speaks }}">{{ r.verdict }}{{ " *" if r.speaks }}</span></td></tr>
{% endfor %}
{% endcall %}
{% endif %}</section>
{% endif %}

{% if curves %}
<section aria-labelledby="curves"><h2 id="curves">Learning curves{{ leak() }}</h2>
{% for figure in curves %}{{ picture(figure) }}{% endfor %}
</section>
{% endif %}

{% if budgets %}
<section aria-labelledby="budgets"><h2 id="budgets">What each client was promised</h2>
<p>{% if budgets | rejectattr("feasible") | list %}Infeasible so far: {{ budgets | rejectattr("feasible") | map(attribute="client") | join(", ") }} ended above the budget. More rounds may help; a price that keeps growing says that the promise cannot be kept.{% else %}Every budget was kept.{% endif %}</p>
{% call table("Client|<Budget|Loss minus budget|Price mu|Complementarity", "Loss on held-out validation rows against the budget, in the selected round") %}
{% for b in budgets %}<tr><th scope="row">{{ b.client }}</th><td class="left">{{ "kept" if b.feasible else "infeasible" }}</td><td>{{ "%+.4f" | format(b.excess) }}</td><td>{{ "%.3f" | format(b.mu) }}</td><td>{{ "%+.2e" | format(b.complementarity) }}</td></tr>
{% endfor %}
{% endcall %}
</section>
{% endif %}

{% if student %}
<section aria-labelledby="student"><h2 id="student">The server's student</h2>
<p>Trained on the consensus logits alone, and tested beside every teacher on the same held-out interactions of the public volunteers, among the items that the teacher carries. A user who is no volunteer is unknown to it. The time is the median for scoring the same items for one volunteer, on one thread.</p>
{% call table("Teacher|<Metric|Volunteers|Teacher|Student|Difference|Parameters of teacher and student|Milliseconds") %}
{% for s in student %}<tr><th scope="row">{{ s.client }}</th><td class="left">{{ s.metric | label }}</td><td>{{ s.users | int }}</td><td>{{ s.teacher | number }}</td><td class="ours">{{ s.student | number }}</td><td>{{ change(s.student - s.teacher, s.low, s.high) }}</td><td>{{ s.teacher_parameters | count }}, {{ s.student_parameters | count }}</td><td>{{ s.teacher_ms | number }}, {{ s.student_ms | number }}</td></tr>
{% endfor %}
{% endcall %}
</section>
{% endif %}

{% if privacy %}
<section aria-labelledby="privacy"><h2 id="privacy">What is promised, and what it cost{{ leak() }}</h2>
<p>{{ privacy.words }}</p>
{% call table("Party|Rounds|Noisy steps|Sampling rate|Noise multiplier|Clip norm|Budget|Spent", "Epsilon that each party has spent at delta " ~ privacy.delta ~ ", for one " ~ privacy.unit) %}
{% for p in privacy.parties[:24] %}<tr><th scope="row">{{ p.who }}</th><td>{{ p.rounds }}</td><td>{{ "{:,}".format(p.steps) }}</td><td>{{ "%.3g" | format(p.rate) }}</td><td>{{ "%.3f" | format(p.noise) }}</td><td>{{ p.clip }}</td><td>{{ p.budget or "none" }}</td><td class="ours">{{ p.spent }}{{ leak() }}</td></tr>
{% endfor %}
{% endcall %}
{% if privacy.people | length > 1 %}{% call table("Silos|People|Epsilon", "People by the silos that hold them: their guarantee is that of all these silos together") %}
{% for p in privacy.people[:24] %}<tr><th scope="row">{{ p.silos | join(", ") }}</th><td>{{ "{:,}".format(p.people) }}</td><td class="ours">{{ p.spent }}{{ leak() }}</td></tr>
{% endfor %}
{% endcall %}{% endif %}
{% if price %}
<h3>What the promise costs</h3>
<p class="muted small">From left to right: the same method without a promise; the batches, uniform weights, training and last round that the promise asks for, without clip and noise; with the clip; with the noise, which is the run of this page. Under each step stands what it changed, with its 95% interval: of a client over its users, of the mean over the clients (one seed, Student's t). All but the last are <strong class="leak">NOT PRIVATE</strong>: the simulation trained them for this table, nobody is sent anything of them, and no ledger pays for them.</p>
{% macro step(name) %}<th scope="col">{{ name }}<small class="leak">NOT PRIVATE</small></th>{% endmacro %}
<div class="scroll" tabindex="0"><table class="price"><thead><tr><th scope="col">Client</th>{{ step("Plain") }}{{ step("Batches, weights") }}{{ step("Clipping") }}<th scope="col">Noise</th></tr></thead><tbody>
{% for r in price %}<tr><th scope="row">{{ r.client }}<small>{{ r.metric | label }}{{ ", lower is better" if not higher_is_better(r.metric) }}</small></th><td>{{ r.plain | number }}</td><td>{{ r.unclipped | number }}<small>{{ change(r.training, r.training_low, r.training_high) }}</small></td><td>{{ r.clipped | number }}<small>{{ change(r.clipping, r.clipping_low, r.clipping_high) }}</small></td><td class="ours">{{ r.private | number }}{{ leak() }}<small>{{ change(r.noise, r.noise_low, r.noise_high) }}</small></td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
<p class="muted small">{{ privacy.beside }}</p>
</section>
{% endif %}

{% if parameters %}
<section aria-labelledby="shared"><h2 id="shared">What was shared, what stayed private</h2>
{% call table("Parameter|<Kind|Shape|Keyed rows|Up|Down", "Bytes over the whole run, from the ledger of messages") %}
{% for p in parameters[:60] %}<tr><th scope="row"><code>{{ p.name }}</code></th><td class="left">{{ p.kind }}</td><td>{{ p.shape }}</td><td>{{ "{:,}".format(p.rows) if p.rows is not none else "–" }}</td>{% if p.kind == "private" and not p.up and not p.down %}<td colspan="2">never sent</td>{% else %}<td>{{ p.up | size }}</td><td>{{ p.down | size }}</td>{% endif %}</tr>
{% endfor %}
{% endcall %}
{% if parameters | length > 60 %}<p class="muted small">The first 60 of {{ parameters | length }}; the others are in <code>experiment.json</code>.</p>{% endif %}
</section>
{% endif %}

{% if traffic %}
<section aria-labelledby="traffic"><h2 id="traffic">What travelled</h2>
{% call table("Bytes|Up|Down|Both") %}
{% for name, bytes in traffic.rows.items() %}<tr><th scope="row">{{ name }}</th>{% for count in bytes %}<td>{{ count | size }}</td>{% endfor %}</tr>
{% endfor %}
{% endcall %}
{{ picture(traffic.figure) }}
</section>
{% endif %}
</main>
</body>
</html>
"""


def study(body: str) -> str:
    """Return the template of a study's page with what is its own."""
    style = PAGE[PAGE.index("<style>") : PAGE.index("</style>")]
    lead = '<p class="kicker">{{ kicker }}</p>\n<h1>{{ title }}</h1>\n<p class="words">{{ words }}</p>\n'
    facts = "<dl>{% for key, value in facts.items() %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>"
    return f"""{PAGE[: PAGE.index("<title>")]}<title>{{{{ title }}}}</title>
{style}</style>
</head>
<body><main>
{lead}{body}<section><h2>What was run</h2>{facts}</section>
</main></body></html>
"""


MEASURED = study(r"""{% for note in notes %}<p class="card care">{{ note }}</p>{% endfor %}
{% for part in parts %}
<section><h2>{{ part.title }}</h2><p>{{ part.words }}</p>
{% if part.figure %}<figure><div class="scroll" tabindex="0">{{ part.figure }}</div></figure>{% endif %}
<div class="scroll" tabindex="0"><table><thead><tr>{% for name in part.rows[0] %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in part.rows %}<tr>{% for cell in row.values() %}{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}<td>{{ cell }}</td>{% endif %}{% endfor %}</tr>
{% endfor %}
</tbody></table></div></section>
{% endfor %}
""")
