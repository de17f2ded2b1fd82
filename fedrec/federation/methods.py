"""The methods as a table of plain fields, beside which every field has its default; composing them needs no class."""

from typing import Any

BODY, ALL = "shared-body", "all-but-users"  # see fedrec.sharing.SHARINGS
ADMM = 1e-4  # rho on the scale of the mean loss, in which an item that few rows touch has little curvature
TIED = {"kind": "mean-regularised", "rho": ADMM, "strength": ADMM}

TABLE: dict[str, dict[str, Any]] = {
    "local": {"share": ""},
    "pooled": {"share": "", "pool": True},
    "fedavg": {"share": ALL},  # arXiv 1602.05629
    "fedper": {"share": BODY},  # arXiv 1912.00818
    "fedrep": {"share": BODY, "phases": ("private", "shared")},  # arXiv 2102.07078
    "fedprox": {"share": ALL, "coupling": {"rho": 1e-4}},  # arXiv 1812.06127
    "admm": {"share": BODY, "coupling": {"rho": ADMM, "duals": True}},  # arXiv 2110.15318
    "mr-mtl": {"share": BODY, "coupling": TIED},
    "graph": {"share": BODY, "coupling": {**TIED, "kind": "graph"}},
    "no-harm": {"share": BODY, "coupling": {**TIED, "duals": True}, "budget": {"margin": 0.02}},
    # Logits alone travel (arXiv 1910.03581) and teach a student (arXiv 2006.07242); needs volunteers.
    "agreement": {"share": "", "coupling": {"rho": ADMM}, "agreement": {"items": 100}},
    "scaffold": {"share": BODY, "drift": {"correction": "scaffold"}},  # arXiv 1910.06378; needs sgd
    "fednova": {"share": BODY, "drift": {"normalise": True}},  # arXiv 2007.07481
    "ditto": {"share": BODY, "drift": {"personal": "ditto", "weight": ADMM}},  # arXiv 2012.04221
    "apfl": {"share": BODY, "drift": {"personal": "apfl", "weight": 0.5}},  # arXiv 2003.13461
    "pfedrec": {"share": "item_table", "drift": {"personal": "tuned"}},  # arXiv 2301.08143
    "fedmgda": {"share": BODY, "descent": {"aggregator": "fedmgda", "eps": 0.1, "lr": 10.0}},
    "pcgrad": {"share": BODY, "descent": {"aggregator": "pcgrad"}},  # arXiv 2001.06782
    "mgda": {"share": BODY, "descent": {"aggregator": "mgda"}},
    "cagrad": {"share": BODY, "descent": {"aggregator": "cagrad"}},  # arXiv 2110.14048
    "imtl-g": {"share": BODY, "descent": {"aggregator": "imtlg"}},
    "upgrad": {"share": BODY, "descent": {"aggregator": "upgrad"}},  # arXiv 2406.16232
    "fedadam": {"share": BODY, "descent": {"optimiser": "adam", "lr": 0.1}},  # arXiv 2003.00295
    "fedyogi": {"share": BODY, "descent": {"optimiser": "yogi", "lr": 0.1}},
    "fedadagrad": {"share": BODY, "descent": {"optimiser": "adagrad", "lr": 0.3}},
    "fedavgm": {"share": BODY, "descent": {"optimiser": "momentum", "lr": 0.5}},  # arXiv 1909.06335
    "median": {"share": BODY, "robust": {"kind": "median"}},  # arXiv 1803.01498
    "trimmed-mean": {"share": BODY, "robust": {"kind": "trimmed-mean"}},
    "krum": {"share": BODY, "robust": {"kind": "krum"}},  # arXiv 1703.02757
    "multi-krum": {"share": BODY, "robust": {"kind": "multi-krum"}},
    "clipped": {"share": BODY, "robust": {"kind": "clip"}},
}
