"""The methods, as values. A method is what its fields say; composing them needs no new class."""

from fedrec.experiment import Method

BODY = ("item_table", "item_bias", "body")

METHODS: dict[str, Method] = {
    m.method: m
    for m in (
        Method(method="local", share=()),
        Method(method="pooled", share=(), pool=True),
        Method(method="fedavg", share=(*BODY, "heads")),  # arXiv 1602.05629
        Method(method="fedper", share=BODY),  # arXiv 1912.00818
        Method(method="fedrep", share=BODY, phases=("private", "shared")),  # arXiv 2102.07078
        Method(method="fedprox", share=(*BODY, "heads"), mu=1e-4),  # arXiv 1812.06127
    )
}
