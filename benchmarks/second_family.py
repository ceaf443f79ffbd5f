"""The edits on another family of models, with no setting changed.

    python benchmarks/second_family.py --workers 2

No second pretrained model comes with this project, so one is trained: an OPT-style organism, larger
than chapter 11's, whose MLPs have two matrices with a ReLU between them, and whose names are read
letter by letter. Methods take the strength that is best on development facts, as `heldout.py`, and
SAEs of what the MLPs read in the layers that edits are made in.
"""

import argparse
import time

from heldout import in_each_form, measured, rows_of, with_older
from report import report, reported
from workers import workers

from helpers.evaluation.evaluation_pairs import known_pairs
from helpers.evaluation.method_choice import FAMILIES, editing_methods
from helpers.methods.fitting.hparams import PARAMETRIZATIONS, UnitEditHparams
from helpers.methods.fitting.layer_selection import select_layers, subject_patching_effect
from helpers.models import load_model
from helpers.organism.recipe import Recipe
from helpers.organism.store import organism
from helpers.organism.theory import training_tokens
from helpers.sae import SAEConfig, TrainSettings
from helpers.sae.store import stored_folder, trained_saes

NAME = "second_family"
RECIPE = Recipe(d_model=192, d_mlp=768, n_layers=8, n_heads=6, n_countries=48, n_repeats=60)
LATENTS, K = 8, 16  # latents a dimension, and how many are active
STEPS, SENTENCES = 600, 12_000  # of each training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--facts", type=int, default=10, help="held-out facts")
    parser.add_argument("--dev-facts", type=int, default=2, help="development facts, for strengths")
    parser.add_argument("--methods", default="all", help="all, or names by commas")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--add", action="store_true", help="to the rows of other methods")
    parser.add_argument("--minutes", type=float, default=1e4, help="stop and report after so long")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    older = reported(NAME) if args.add else []
    folder = str(organism(RECIPE))
    lm = load_model(folder)
    dev = known_pairs(lm, "capital", "dev", n=args.dev_facts)
    heldout = known_pairs(lm, "capital", "heldout", n=args.facts)
    site = select_layers(lm, heldout, UnitEditHparams(parametrization="low_rank"))
    configs = [
        (
            SAEConfig(
                "topk", RECIPE.d_model, LATENTS * RECIPE.d_model, k=K, site="mlp_in", layer=i
            ),
            TrainSettings(steps=STEPS, batch=1024, lr=2e-3),
        )
        for i in site.layers
    ]
    trained = trained_saes(lm, training_tokens(RECIPE, SENTENCES), configs)
    saes = [str(stored_folder(sae.key)) for sae in trained]
    chosen = in_each_form(
        editing_methods(args.methods, saes, families=FAMILIES), list(PARAMETRIZATIONS)
    )
    with workers(args.workers, "cpu", folder) as pool:
        results = measured(pool, chosen, {}, dev, heldout, seeds=1, until=until)
    effects = subject_patching_effect(lm, "capital")
    means = effects.groupby(["position", "layer"])["patching_effect"].mean()
    last = site.layers[-1]
    report(
        NAME,
        {
            "title": "The edits on a second family",
            "how": f"An OPT-style model of {RECIPE.n_layers} layers, trained for this on the facts "
            f"of {RECIPE.n_countries} countries; every setting is the default model's. A subject's "
            f"tokens carry {means['subject', last]:.2f} of its answer up to layer {last}, the last "
            f"of them alone {means['end', last]:.2f}: what writes there alone cannot reach the "
            "rest. Columns as on held-out facts.",
            "rows": with_older(rows_of(results), older),
        },
    )


if __name__ == "__main__":
    main()
