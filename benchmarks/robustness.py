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
from helpers.evaluation.battery import Evidence, State, battery
from helpers.evaluation.equal_disruption import BUDGETS, scale_to_kl
from helpers.evaluation.evaluation_pairs import known_pairs
from helpers.evaluation.findings import Margins, attack_findings
from helpers.evaluation.method_choice import editing_methods
from helpers.facts.corpus import corpus_tokens
from helpers.methods import METHODS, unlearn
from helpers.models import load_model
from helpers.stats.intervals import format_interval, mean_interval

PLAIN = "paraphrases"
ASKED = ("few_shot", "described", "truncation", "mlp_windows", "quantisation_int4")
TRAINED = ("relearning_forgotten", "relearning_neighbours")
OPTIONS = {name: {"steps": (5,), "rates": (1e-4, 3e-4)} for name in TRAINED}
N_CONTROLS = 2
N_TOKENS = 1024
STEPS = (5, 10)
NAMES = {
    "p": "P(target)",
    "worst": "worst prompt",
    "same_subject": "same subject",
    "same_target": "same target",
}


def measure(pair, name, hyperparameters, attacks, budgets) -> pd.DataFrame:
    """Score and attack one method on one fact at every budget, in a worker.

    Returns:
        Rows of evidence and of the scorecard (attack `""`), with method, fact, budget_kl, scale,
        and refused with the reason.
    """
    lm, about = model(), {"method": name, "fact": str(pair)}
    tokens = corpus_tokens(lm.tokenizer, split="heldout", n_tokens=N_TOKENS, seed=1)
    options = {name: OPTIONS[name] for name in attacks if name in OPTIONS}
    try:
        edit = unlearn(lm, pair, name, **hyperparameters)
    except UserError as error:
        return pd.DataFrame([{**about, "refused": str(error)}])
    tables = []
    for budget in budgets:
        scaled = scale_to_kl(lm, edit, budget, tokens=tokens, max_scale=1.0)
        rest = {"budget_kl": budget, "scale": scaled.scale, "kl": scaled.kl}
        rest["seconds"] = edit.seconds
        with scaled.edit.applied(lm):
            card = evaluate(lm, pair, n_neighbours=16, parts=("efficacy", "retention"))
            groups = ("neighbours", "same_subject", "same_target")
            scores = {k: card[k].value for k in groups if k in card}
            scores |= {"worst": card["worst_paraphrase"].value, "p": card[PLAIN].value}
            tables.append(pd.DataFrame([{"attack": "", **scores}]).assign(**about, **rest))
            evidence = battery(lm, pair, attacks=attacks, options=options, n_controls=N_CONTROLS)
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
            "KL": f"{cards['kl'].mean():.2g}",
            "scale": f"{cards['scale'].median():.2g}",
            "seconds": f"{cards['seconds'].median():.0f}",
        }
        for column in ("p", "worst", "neighbours", "same_subject", "same_target"):
            mean = mean_interval(cards[column].dropna().to_numpy())
            row[NAMES.get(column, column)] = format_interval(mean.value, mean.low, mean.high)
        rows.append(row | probabilities(part) | recoveries(part[part["attack"] != ""], attacks))
    return pd.DataFrame(rows).fillna("–").to_dict("records")  # the same columns in each


def probabilities(part: pd.DataFrame) -> dict[str, str]:
    """Format P(target) under each attack, at its strongest budget, with facts as units."""
    edited = part[part["state"] == State.EDITED.value]
    means = edited.groupby(["attack", "fact", "budget"], sort=False)["score"].mean()
    largest = means.groupby(["attack", "fact"], sort=False).max()
    shown = {}
    for name, values in largest.groupby("attack", sort=False):
        mean = mean_interval(values.to_numpy())
        text = format_interval(mean.value, mean.low, mean.high)
        shown[f"P: {name.replace('_', ' ')}"] = text
    return shown


def recoveries(attacked: pd.DataFrame, attacks: list[str]) -> dict[str, str]:
    """Format the recovery of each attack, with facts as units."""
    cases = []
    for _, part in attacked.groupby("fact", sort=False):
        missing = set(attacks) - set(part["attack"])
        cases.append(Evidence(part, dict.fromkeys(missing, "not applicable")))
    findings = attack_findings(cases, attacks, Margins()).set_index("attack")
    return {
        f"back: {name.replace('_', ' ')}": format_interval(row.recovery, row.low, row.high)
        for name, row in findings.iterrows()
        if name != PLAIN
    }


def facts_given(pairs, name, hyperparameters) -> pd.DataFrame:
    """Forget facts together, fine-tune on half of them, and ask for the other half; in a worker."""
    lm = model()
    tokens = corpus_tokens(lm.tokenizer, split="heldout", n_tokens=N_TOKENS, seed=1)
    scaled = scale_to_kl(lm, unlearn(lm, pairs, name, **hyperparameters), BUDGETS[0], tokens=tokens)
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
        default="concept_removal, gated_neuron, tangent_kernel, rome, repselect, "
        "gradient_difference",
        help="names by commas",
    )
    parser.add_argument(
        "--together", type=int, default=10, help="facts that are forgotten together"
    )
    parser.add_argument("--attacks", default=", ".join((PLAIN, *ASKED, *TRAINED)), help="names")
    parser.add_argument("--budgets", default="0.001", help="nats a token, by commas")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--minutes", type=float, default=1e4, help="stop and report after so long")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    attacks = [name.strip() for name in args.attacks.split(",")]
    budgets = [float(x) for x in args.budgets.split(",")]
    lm = load_model(device=args.device)
    chosen = editing_methods(args.methods, [], families=("surgery", "training"))
    pairs = known_pairs(lm, "capital", "heldout", n=args.facts)
    jobs = [(pair, name, h, attacks, budgets) for pair in pairs for name, h in chosen.items()]
    together = [
        (pairs[: args.together], name, chosen[name])
        for name in chosen
        if METHODS[name].supports_batch and min(args.together, len(pairs)) > 1
    ]
    counted = [ATTACKS[name].name for name in attacks]
    with workers(args.workers, args.device) as pool:
        table = gather(pool, measure, jobs, until)
        report_attacks(table.sort_values(["method", "budget_kl", "fact"]), counted)
        if together and time.time() < until:
            report_given(gather(pool, facts_given, together, until))


def report_attacks(table: pd.DataFrame, attacks: list[str]) -> None:
    """Write the table of methods at the same disruption."""
    result = {
        "title": "What comes back, at the same disruption",
        "how": "Held-out capitals that the model knows, seed 0. Each edit whose KL(before ‖ after) "
        f"on {N_TOKENS} tokens of held-out Factbook passages is over the budget, in nats a token, "
        "is scaled down to it. P: mean P(target) over held-out wordings, and under each attack "
        "where it is largest; worst prompt: of the wordings. Back: recovery ratio (0: as from "
        "facts never known, 1: as from the original) where the attack recovers most. Retention: "
        "min(1, after / before). Seconds: of one edit, by one of the workers. Means over facts "
        "with their 95 % interval.",
        "rows": rows_of(table, attacks),
    }
    report("robustness", result)


def report_given(given: pd.DataFrame) -> None:
    """Write the table of facts that come back when others are trained."""
    result = {
        "title": "Facts given, facts asked",
        "how": f"Facts that are forgotten together, scaled to at most {BUDGETS[0]:g} nats a "
        f"token; the edited model is fine-tuned on half of them for {max(STEPS)} steps (mean over "
        f"checkpoints {', '.join(map(str, STEPS))}), and asked for the other half. Recovery "
        "before, and after fine-tuning at each learning rate: 0 as of facts never known, 1 as of "
        "the original. Seed 0.",
        "rows": given.to_dict("records"),
    }
    report("robustness_disjoint", result)


if __name__ == "__main__":
    main()
