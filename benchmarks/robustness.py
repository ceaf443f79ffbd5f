"""Methods at the same disruption of ordinary text, and what attacks bring back of held-out facts.

    python benchmarks/robustness.py --workers 2

Each edit is scaled to the same KL(before ‖ after) on Factbook passages that no method has seen, and
attacked. Every attack on every edit lands in the cache that the notebooks use, so a stopped run
goes on where it was.
"""

import argparse
import time

import pandas as pd
from report import report
from workers import gather, model, workers

from helpers.errors import UserError
from helpers.evaluation import evaluate
from helpers.evaluation.attacks import ATTACKS
from helpers.evaluation.attacks.disjoint_facts import disjoint_recovery, relearn_disjoint
from helpers.evaluation.battery import Evidence, battery
from helpers.evaluation.equal_disruption import BUDGETS, MAX_SCALE, scale_to_kl
from helpers.evaluation.evaluation_pairs import known_pairs
from helpers.evaluation.findings import Margins, attack_findings
from helpers.evaluation.method_choice import editing_methods
from helpers.facts.corpus import corpus_tokens
from helpers.methods import METHODS, unlearn
from helpers.models import load_model
from helpers.stats.intervals import format_interval, mean_interval

PLAIN = "paraphrases"
ASKED = ("few_shot", "described", "sampling", "quantisation_int4")
TRAINED = ("relearning_forgotten", "relearning_neighbours", "relearning_unrelated")
CURVE = (1e-4, 1e-3, 1e-2, 1e-1)  # nats a token at which P(target) alone is measured
N_CONTROLS = 3
N_TOKENS = 2048
STEPS = (5, 10)


def measure(pair, name, hyperparameters, attacks) -> pd.DataFrame:
    """Score one method on one fact at every budget, and attack it at `BUDGETS`, in a worker.

    Returns:
        Rows of evidence and of the scorecard (attack `""`), with method, fact, budget_kl, scale,
        and refused with the reason.
    """
    lm, about = model(), {"method": name, "fact": str(pair)}
    tokens = corpus_tokens(lm.tokenizer, split="heldout", n_tokens=N_TOKENS, seed=1)
    try:
        edit = unlearn(lm, pair, name, **hyperparameters)
    except UserError as error:
        return pd.DataFrame([{**about, "refused": str(error)}])
    tables = []
    for budget in CURVE:
        scaled = scale_to_kl(lm, edit, budget, tokens=tokens)
        rest = {"budget_kl": budget, "scale": scaled.scale, "kl": scaled.kl}
        rest["meets_budget"] = scaled.meets_budget
        with scaled.edit.applied(lm):
            card = evaluate(lm, pair, n_neighbours=12, parts=("efficacy", "retention"))
            scores = {k: card[k].value for k in ("neighbours", "same_subject") if k in card}
            scores["left"] = card[PLAIN].value / card.before[PLAIN]
            tables.append(pd.DataFrame([{"attack": "", **scores}]).assign(**about, **rest))
            if budget in BUDGETS:
                evidence = battery(lm, pair, attacks=attacks, n_controls=N_CONTROLS)
                tables.append(evidence.table.assign(**about, **rest))
    return pd.concat(tables, ignore_index=True).assign(refused="")


def rows_of(table: pd.DataFrame, attacks: list[str]) -> list[dict]:
    """Report one row a method and budget, over facts."""
    rows = []
    refused = table[table["refused"] != ""].groupby("method")["fact"].nunique()
    table = table[table["refused"] == ""]
    for (name, budget), part in table.groupby(["method", "budget_kl"], sort=False):
        cards = part[part["attack"] == ""]
        row = {
            "method": name,
            "KL budget": f"{budget:g}",
            "facts": len(cards),
            "refused": int(refused.get(name, 0)),
            "reach it": int(cards["meets_budget"].sum()),
            "scale": f"{cards['scale'].median():.2g}",
        }
        for column in ("left", "neighbours", "same_subject"):
            mean = mean_interval(cards[column].dropna().to_numpy())
            row[column.replace("_", " ")] = format_interval(mean.value, mean.low, mean.high)
        attacked = part[part["attack"] != ""]
        if len(attacked):
            row |= recoveries(attacked, attacks)
        rows.append(row)
    return pd.DataFrame(rows).fillna("–").to_dict("records")  # the same columns in each


def recoveries(attacked: pd.DataFrame, attacks: list[str]) -> dict[str, str]:
    """Format the recovery of each attack, with facts as units."""
    cases = []
    for _, part in attacked.groupby("fact", sort=False):
        missing = set(attacks) - set(part["attack"])
        cases.append(Evidence(part, dict.fromkeys(missing, "not applicable")))
    findings = attack_findings(cases, attacks, Margins()).set_index("attack")
    return {
        name.replace("_", " "): f"{format_interval(row.recovery, row.low, row.high)} (n = {row.n})"
        for name, row in findings.iterrows()
        if name != PLAIN
    }


def facts_given(pairs, name, hyperparameters) -> pd.DataFrame:
    """Forget facts together, fine-tune on half of them, and ask for the other half; in a worker."""
    lm = model()
    tokens = corpus_tokens(lm.tokenizer, split="heldout", n_tokens=N_TOKENS, seed=1)
    scaled = scale_to_kl(
        lm, unlearn(lm, pairs, name, **hyperparameters), BUDGETS[-1], tokens=tokens
    )
    with scaled.edit.applied(lm):
        table = relearn_disjoint(lm, pairs, steps=STEPS)
    recovery = disjoint_recovery(table)
    row = {"method": name, "forgotten": len(pairs), "asked": table["subject"].nunique()}
    row |= {"KL": f"{scaled.kl:.2g}", "scale": f"{scaled.scale:.2g}", "before": recovery[0.0]}
    row |= {f"after {rate:g}": ratio for rate, ratio in recovery.drop(0.0).items()}
    return pd.DataFrame([row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--facts", type=int, default=20, help="held-out facts")
    parser.add_argument(
        "--methods",
        default="gated_neuron, tangent_kernel, rome, gradient_difference",
        help="names by commas",
    )
    parser.add_argument(
        "--together", type=int, default=10, help="facts that are forgotten together"
    )
    parser.add_argument("--attacks", default=", ".join((PLAIN, *ASKED, *TRAINED)), help="names")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--minutes", type=float, default=1e4, help="stop and report after so long")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    attacks = [name.strip() for name in args.attacks.split(",")]
    lm = load_model(device=args.device)
    chosen = editing_methods(args.methods, [], families=("surgery", "training"))
    pairs = known_pairs(lm, "capital", "heldout", n=args.facts)
    jobs = [(pair, name, h, attacks) for pair in pairs for name, h in chosen.items()]
    together = [
        (pairs[: args.together], name, chosen[name])
        for name in chosen
        if METHODS[name].supports_batch and min(args.together, len(pairs)) > 1
    ]
    with workers(args.workers, args.device) as pool:
        given = gather(pool, facts_given, together, until) if together else pd.DataFrame()
        table = gather(pool, measure, jobs, until)
    counted = [ATTACKS[name].name for name in attacks]
    result = {
        "title": "What comes back, at the same disruption",
        "how": "Held-out capitals that the model knows, seed 0. Each edit is scaled so that KL "
        f"(before ‖ after) on {N_TOKENS} tokens of held-out Factbook passages is the budget, in "
        f"nats a token; one that stays below it at {MAX_SCALE:g} times its change is taken there. "
        "Left: P(target) after / before on held-out wordings; neighbours and same subject: what "
        "is kept. Attacks: recovery ratio (0: as from facts never known, 1: as from the original) "
        "where the attack recovers most. Means over facts with their 95 % interval.",
        "rows": rows_of(table.sort_values(["method", "budget_kl", "fact"]), counted),
    }
    report("robustness", result)
    if given.empty:
        return
    result = {
        "title": "Facts given, facts asked",
        "how": f"Facts that are forgotten together, scaled to at most {BUDGETS[-1]:g} nats a "
        f"token; the edited model is fine-tuned on half of them for {max(STEPS)} steps (mean over "
        f"checkpoints {', '.join(map(str, STEPS))}), and asked for the other half. Recovery "
        "before, and after fine-tuning at each learning rate: 0 as of facts never known, 1 as of "
        "the original. Seed 0.",
        "rows": given.to_dict("records"),
    }
    report("robustness_disjoint", result)


if __name__ == "__main__":
    main()
