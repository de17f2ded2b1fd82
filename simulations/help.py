"""The first page of --help: nothing but the standard library is imported for it, so that it is there at once."""

from collections.abc import Mapping, Sequence

TOPICS = ("all", "data", "method", "training", "taking-part", "privacy", "evaluation", "running", "methods", "sharings")
USAGE = "fedrec run [--OPTION VALUE ...]   (or python -m simulations.run ...)"
# What most runs are made of, by group; the words are for the first page alone, the defaults are those of Experiment.
MOST: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "data": {
        "--dataset NAME": ("synthetic, table, ml-1m ..., or yours", "synthetic"),
        "--data-dir PATH": ("folder of a public data set, or files of a table", ""),
        "--columns TEXT": ("of a table: user=NAME,item=NAME,platform=NAME ...", ""),
        "--clients N": ("number of clients; 5, or one for each platform", ""),
        "--partition HOW": ("who is a client: platform, users:age, one-user", "auto"),
        "--split HOW": ("or temporal, random, new-items ...", "leave-one-out"),
    },
    "learning": {
        "--method NAME": ("how the clients learn together, see below", "fedper"),
        "--share NAMES": ("what of a model is shared; the rest is private", ""),
        "--model NAME": ("slist, or mf if gradients are needed; or yours", "auto"),
        "--task NAMES": ("rank, rating, a label, or several: rank,click", "rank"),
        "--rounds N": ("rounds of communication; 1 for sums", "20"),
        "--local-epochs N": ("passes over a client's data in a round", "2"),
        "--lr X": ("local learning rate", "0.01"),
    },
    "privacy and evaluation": {
        "--privacy.unit WHAT": ("interaction, user, client: protect it by noise", "none"),
        "--privacy.epsilon X": ("the budget of that; calibrates the noise", ""),
        "--secure.active": ("sums of answers of which nobody sees one", ""),
        "--metrics NAMES": ("the first selects the round", "ndcg@10,hr@10"),
        "--patience N": ("stop after so many validations without gain", "0"),
        "--no-compare": ("without the baselines alone, pooled and popularity", ""),
    },
    "running": {
        "--engine NAME": ("process, inline, batched, ray, superlink", "process"),
        "--device NAMES": ("auto, cpu, cuda, or a list: cuda:0,cuda:1", "auto"),
        "--seed N": ("of everything random", "0"),
        "--out DIR": ("where the run is recorded; runs/NAME without it", ""),
        "--config FILE": ("JSON or TOML of options, or an experiment.json", ""),
        "--estimate": ("what memory and time it would take; runs nothing", ""),
        "--resume DIR": ("go on with a run that was broken off", ""),
    },
}
EXAMPLES = (
    "  fedrec run --clients 5",
    "  fedrec run --dataset table --data-dir sales.csv --columns user=user,item=sku",
)
WIDTH, COLUMN = 79, 22


def first_page(methods: Sequence[str]) -> str:
    """Return the first page, of at most 60 lines of 80 characters, with the names of the methods."""
    import textwrap

    lines = [f"usage: {USAGE}", ""]
    lines += textwrap.wrap(
        "Train recommenders that learn together, each with a private part, and report whether it helped.", WIDTH
    )
    for group, options in MOST.items():
        lines += ["", f"{group}:"]
        for name, (words, default) in options.items():
            lines.append(f"  {name:<{COLUMN}} {words}{f' [{default}]' if default else ''}")
    lines += ["", *textwrap.wrap(f"methods: {', '.join(methods)}", WIDTH, subsequent_indent="  ")]
    lines += ["", *textwrap.wrap(f"--help TOPIC tells more: {', '.join(TOPICS)}.", WIDTH, subsequent_indent="  ")]
    lines += ["--model mmoe --help tells the options of a part, ours or yours.", "", *EXAMPLES]
    return "\n".join(lines)
