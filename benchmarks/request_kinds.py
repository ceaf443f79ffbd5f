"""Methods on whole entities and on capabilities.

    python benchmarks/request_kinds.py --workers 2

Every finished row is kept in the cache by model, request, method and code, so a stopped run goes on
where it was.
"""

import argparse
import time

import pandas as pd
from report import report
from workers import gather, model, workers

from helpers.book.settings import ROOT
from helpers.errors import UserError
from helpers.evaluation import evaluate
from helpers.evaluation.evaluation_pairs import known_pairs
from helpers.evaluation.text_attacks import text_attacks
from helpers.evaluation.text_scorecard import worst_change
from helpers.io.cache import cached_table
from helpers.io.hashing import content_hash
from helpers.methods import METHODS, unlearn
from helpers.models import load_model, model_hash
from helpers.requests import capability, entity
from helpers.stats.intervals import format_interval, mean_interval

ENTITY_METHODS = "gated_neuron, gradient_difference, npo, repselect"
TEXT_METHODS = (
    "selective_pruning, random_pruning, neuron_adjust, kfade, gradient_difference, repselect"
)
CAPABILITIES = "french, spanish, german, python, multiplication"
CARD = ("named", "worst_fact", "associated", "above", "neighbours", "kl_factbook")
N_TOKENS = 2048
ATTACKED = ("relearning_unrelated", "relearning_forgotten", "int4")


def code() -> str:
    """Hash the code of all methods, so that a row is measured again when one changes."""
    return content_hash(*sorted((ROOT / "helpers" / "methods").rglob("*.py")))


def measure_entity(subject: str, name: str) -> pd.DataFrame:
    """Forget an entity by one edit and score it, in a worker."""
    lm, about = model(), {"request": subject, "method": name}
    key = {**about, "model": model_hash(lm), "code": code()}

    def build() -> pd.DataFrame:
        try:
            edit = unlearn(lm, entity(subject), name)
        except UserError as error:
            return pd.DataFrame([{**about, "refused": str(error)}])
        with edit.applied(lm):
            card = evaluate(lm, entity(subject), n_tokens=N_TOKENS)
        values = {k: card[k].value for k in CARD if k in card}
        row = {**about, "refused": "", "seconds": edit.seconds, "facts": card["named"].n}
        return pd.DataFrame([{**row, "before": card.before["named"], **values}])

    return cached_table("benchmark-entities", key, build)


def measure_capability(skill: str, name: str) -> pd.DataFrame:
    """Remove a capability, score it and attack it, in a worker."""
    lm, about = model(), {"request": skill, "method": name}
    key = {**about, "model": model_hash(lm), "code": code()}

    def build() -> pd.DataFrame:
        request = capability(skill)
        try:
            edit = unlearn(lm, request, name)
        except UserError as error:
            return pd.DataFrame([{**about, "refused": str(error)}])
        with edit.applied(lm):
            card = evaluate(lm, request, n_tokens=N_TOKENS)
        target = request.heldout[0].name
        row = {**about, "refused": "", "seconds": edit.seconds, "worst": worst_change(card).value}
        row["before"], row["after"] = card.before[f"loss_{target}"], card[f"loss_{target}"].value
        row |= {"forgotten": card[f"forgotten_{target}"].value}
        row |= {end: getattr(card[f"forgotten_{target}"], end) for end in ("low", "high")}
        if len(request.heldout) > 1:
            row["elsewhere"] = card[f"forgotten_{request.heldout[1].name}"].value
        if edit.changes_weights and METHODS[name].family != "control":
            attacked = text_attacks(lm, request, edit, attacks=ATTACKED, n_tokens=N_TOKENS // 2)
            attacked = attacked[attacked["state"] != "original"]
            for (state, attack), part in attacked.groupby(["state", "attack"]):
                last = part.sort_values("steps").iloc[-1]
                row |= {
                    f"{state} {attack}": last["forgotten"],
                    f"gain {state} {attack}": last["gain"],
                }
        return pd.DataFrame([row])

    return cached_table("benchmark-capabilities", key, build)


def entity_rows(table: pd.DataFrame) -> list[dict]:
    """Report one row a method, over entities."""
    rows = []
    for name, part in table.groupby("method", sort=False):
        made = part[part["refused"] == ""]
        row = {"method": name, "entities": len(made), "refused": len(part) - len(made)}
        row |= {"facts": int(made["facts"].sum()), "seconds": f"{made['seconds'].median():.0f}"}
        for column in ("before", *CARD):
            mean = mean_interval(made[column].dropna().to_numpy())
            row[column.replace("_", " ")] = format_interval(mean.value, mean.low, mean.high)
        rows.append(row)
    return rows


def capability_rows(table: pd.DataFrame) -> list[dict]:
    """Report one row a capability and method."""
    rows = []
    for row in table.to_dict("records"):
        if row["refused"]:
            rows.append(
                {"capability": row["request"], "method": row["method"], "seconds": "refused"}
            )
            continue
        rows.append(
            {
                "capability": row["request"],
                "method": row["method"],
                "seconds": f"{row['seconds']:.0f}",
                "loss before": f"{row['before']:.2f}",
                "loss after": f"{row['after']:.2f}",
                "forgotten": format_interval(row["forgotten"], row["low"], row["high"]),
                "in another source": _share(row.get("elsewhere")),
                "largest change elsewhere": f"{row['worst']:+.1%}",
                "after int4": _share(row.get("edited int4")),
                "after unrelated text": _share(row.get("edited relearning_unrelated")),
                "after the text itself": _share(row.get("edited relearning_forgotten")),
                "gain on it": _share(row.get("gain edited relearning_forgotten")),
                "gain of a new language": _share(row.get("gain control relearning_forgotten")),
            }
        )
    return pd.DataFrame(rows).fillna("–").to_dict("records")


def _share(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.2f}"


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entities", type=int, default=10, help="held-out countries; 0 for none")
    parser.add_argument("--entity-methods", default=ENTITY_METHODS, help="names by commas")
    parser.add_argument("--capabilities", default=CAPABILITIES, help="names by commas, or empty")
    parser.add_argument("--text-methods", default=TEXT_METHODS, help="names by commas")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--minutes", type=float, default=1e4, help="stop and report after so long")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    subjects: list[str] = []
    if args.entities:
        lm = load_model(device=args.device)
        subjects = [p.subject for p in known_pairs(lm, "capital", "heldout", n=args.entities)]
    entities = [(s, name) for s in subjects for name in names(args.entity_methods)]
    skills = [(s, name) for s in names(args.capabilities) for name in names(args.text_methods)]
    with workers(args.workers, args.device) as pool:
        if skills:
            table = gather(pool, measure_capability, skills, until)
            report_capabilities(
                table.sort_values(["request", "forgotten"], ascending=[True, False])
            )
        if entities:
            report_entities(gather(pool, measure_entity, entities, until))


def report_entities(table: pd.DataFrame) -> None:
    """Write the table of entities."""
    result = {
        "title": "Everything about a country, by one edit",
        "how": "Held-out countries whose capital the model knows well, with all facts of theirs "
        "that it knows; each method at its defaults, seed 0. Named: mean P(target) over a "
        "country's facts on held-out wordings; worst fact; associated: names that go with the "
        "subject and were never the answer; above: share of facts likelier than theirs. "
        "Neighbours: the same relations of other countries, min(1, after / before). KL on "
        f"{N_TOKENS} tokens of held-out Factbook passages, in nats a token. Means over countries "
        "with their 95 % interval. Seconds: of one edit, by one of the workers.",
        "rows": entity_rows(table.sort_values(["method", "request"])),
    }
    report("entities", result)


def report_capabilities(table: pd.DataFrame) -> None:
    """Write the table of capabilities."""
    result = {
        "title": "Capabilities",
        "how": f"Each method at its defaults, seed 0, on {N_TOKENS} tokens of each held-out text. "
        "Loss in nats a token. Forgotten: share of the way to the floor (the words of each "
        "document in random order, or answers of other questions), with its 95 % interval over "
        "sequences; in another source: the same on Sphinx's messages. Largest change elsewhere: "
        "of the loss on any text that must stay. After: what is still forgotten after rounding, "
        "and after 20 steps of fine-tuning on unrelated text and on the text itself; gain: fall of "
        "the loss by these, beside that of the original on a language that it never learned.",
        "rows": capability_rows(table),
    }
    report("capabilities", result)


if __name__ == "__main__":
    main()
