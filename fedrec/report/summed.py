"""What a run that learns by sums ties, what its clients sent for that, and what can be read from it."""

from fedrec.models import SUMMED
from fedrec.report.findings import listing, size
from fedrec.report.tables import Run
from fedrec.sharing import GRAM, ITEM_SUMS, SUMS

MASKED = "masked:"  # before the name of what a client adds to a secure sum


def sums_told(run: Run) -> list[str]:
    """Return in sentences the constraint, who made each client's part, what travelled, and what it tells to whom.

    Empty for a run that learns by gradients, or in which nothing is shared.
    """
    if run.option("model") not in SUMMED or not run.option("share"):
        return []
    clients = len(run.names())
    if meets(run):
        return [met(), made(run)]
    if run.option("model") == "ials":
        return [factored(run, clients), made(run), travelled(run), readable_factors(run)]
    return [constraint(run, clients), made(run), travelled(run), readable(run, clients)]


def meets(run: Run) -> bool:
    """Return whether the clients meet in the factors of their users."""
    return run.option("model") == "ials" and tuple(run.option("share") or ()) == ("user_factors",)


def met() -> str:
    """Return the constraint on the factors of users, what is private, and what can be read."""
    return (
        "Constraint: P_i = P_j in the row of each user that clients i and j both have, approached by rounds; "
        "item factors never leave a client. The server can read from its answers which users a client has, and where "
        "it would have their factors."
    )


def constraint(run: Run, clients: int) -> str:
    """Return what ties the clients, and what of it is private."""
    heads = f"private heads: {head(run)}."
    each = "W_1 = W_2" if clients == 2 else f"W_1 = ... = W_{clients}"
    tied = f"Constraint: {each}, one W between items, solved for from the sum of the clients' G_i and C_i; "
    if run.record.get("privacy"):
        tied = "Constraint: one total for all, of the clients' sums with noise; "
        heads = "private heads: how much a client's own exact sums weigh beside it, which is never sent."
    elif run.record.get("certificate"):
        kind = (run.option("coupling") or {}).get("kind")
        tied = f"Constraint: W_1, ..., W_{clients} between items are coupled ({kind}), and solved for together; "
    return tied + (heads if headed(run) else "no private heads: B_i = W.")


def head(run: Run) -> str:
    """Return what a client scores with, of which its own part is never sent."""
    drift = run.option("drift") or {}
    if drift.get("personal") == "apfl":
        share = drift["weight"]
        return f"B_i = {share:g} A_i + {1 - share:g} W, of which A_i, of its own sums alone, is never sent"
    kept = "B_i = W + D_i, of which D_i is never sent"
    return kept + (f"; w = {1 / drift['weight']:g} for all" if drift.get("personal") == "ditto" else "")


def headed(run: Run) -> bool:
    """Return whether the clients have private heads."""
    private = [p["name"] for p in run.record.get("parameters", {}).get("private", [])]
    return any(name.startswith("heads.") for name in private)


def factored(run: Run, clients: int) -> str:
    """Return the constraint on the factors of items, and what of the clients is private."""
    each = "Y_1 = Y_2" if clients == 2 else f"Y_1 = ... = Y_{clients}"
    tied = f"Constraint: {each}, one table of item factors, solved for in every sweep from sums over the clients' users"
    heads = ", nor do the item factors of private heads" if headed(run) else ""
    return f"{tied}; the factors of a client's users never leave it{heads}."


def readable_factors(run: Run) -> str:
    """Return what the server can read from sums over the factors of users."""
    if run.option("partition") == "one-user":
        return "The server can read from them each client's items, and its factors."
    one = "if one of them alone likes it, that user's factors, which say what else it likes"
    return f"The server can read from them how many of a client's users like each item, and, {one}."


def made(run: Run) -> str:
    """Return on which device each client made its part."""
    devices = run.federated.clients.drop_duplicates("client", keep="last").groupby("device", sort=False)["client"]
    return f"Made on {'; '.join(f'{device}: {listing(names)}' for device, names in devices)}."


def travelled(run: Run) -> str:
    """Return how large all that a client sent, and was sent, is in the mean over clients, by parameter."""
    table = run.ledger[run.ledger["parameter"].str.startswith((SUMS, ITEM_SUMS, MASKED)) & (run.ledger["round"] > 0)]
    clients = max(len(run.names()), 1)
    parts = []
    for direction, words in (("up", "A client sent"), ("down", "and was sent")):
        mean = table[table["direction"] == direction].groupby("parameter", sort=False)["bytes"].sum() / clients
        parts.append(f"{words} " + (", ".join(f"{name} {size(count)}" for name, count in mean.items()) or "nothing"))
    return f"{parts[0]}; {parts[1]}."


def readable(run: Run, clients: int) -> str:
    """Return what whoever gets the sums can read from them."""
    alone = run.option("partition") == "one-user"
    tell = "each client's items" if alone else "which pairs of items the same users of a client liked"
    if run.record.get("privacy"):
        text = "What the server can read from them is bounded by the promise of this page."
    elif (run.option("secure") or {}).get("active"):
        text = "The server reads the total alone: which pairs of items the same users liked, of all clients together."
    else:
        text = f"The server can read from them {tell} (--secure.active hides all but the total)."
    if clients == 2 and run.ledger["parameter"].eq(GRAM).mul(run.ledger["direction"].eq("down")).any():
        text += " Each of the two clients can subtract its own sums from the total that it is sent: it has the other's."
    return text
