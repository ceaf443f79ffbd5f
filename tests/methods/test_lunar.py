"""LUNAR: its ridge regression by least squares, its layer by hooks, where activations go."""

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from small_edits import own_pair
from tiny_models import KNOWN, tiny_tokenizer
from transformers import AutoModelForCausalLM, Gemma2Config

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.forward.prompts import token_ids
from helpers.forward.scoring import answer_probability
from helpers.methods import unlearn
from helpers.methods.fitting.contrast import subject_prompts
from helpers.methods.fitting.plain_writes import require_plain_writes
from helpers.methods.surgery import lunar as module
from helpers.methods.training.data import forget_retain_data
from helpers.models import architecture_of, load_model, model_hash, torch_module

FRANCE, JAPAN = ConceptPair("France", "Paris"), ConceptPair("Japan", "Tokyo")


def test_the_closed_form_solves_the_ridge_regression():
    """Against stacked least squares, for two pairs with vectors of their own."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    keys, vectors = [normal(9, 7), normal(4, 7)], [normal(5), normal(5)]
    retained, weight, ridge = normal(20, 7), 3.0, 0.2
    right = module.redirecting_keys(keys, weight * retained.T @ retained / 20, ridge=ridge)
    change = torch.stack(vectors, 1) @ right
    n = 13
    rows = [torch.cat(keys) / n**0.5, retained * (weight / 20) ** 0.5, ridge**0.5 * torch.eye(7)]
    goals = torch.cat([vectors[0].expand(9, -1), vectors[1].expand(4, -1)]) / n**0.5
    goals = torch.cat([goals, torch.zeros(27, 5, dtype=torch.float64)])
    expected = torch.linalg.lstsq(torch.cat(rows), goals).solution.T
    torch.testing.assert_close(change, expected)


def test_the_vector_is_the_difference_of_two_means(knowing):
    model = knowing()
    others = module.unknown_subjects(model, FRANCE, 12)
    assert len(others) == 12 and not {o.subject for o in others} & {"France", *KNOWN}
    vectors = module.unlearning_vectors(model, FRANCE, others)
    own = subject_prompts(FRANCE)
    taken = [subject_prompts(o)[n % len(own)] for n, o in enumerate(others)]
    means = []
    for prompts in (taken, own):
        states = []
        for prompt in prompts:
            ids = torch.tensor([token_ids(model, prompt)])
            with torch.no_grad():
                out = torch_module(model)(ids, output_hidden_states=True)
            states.append(torch.stack([h[0, -1] for h in out.hidden_states[1:-1]]))
        means.append(torch.stack(states).mean(0))
    torch.testing.assert_close(vectors[:-1], means[0] - means[1], rtol=1e-4, atol=1e-4)


def test_layers_are_compared_by_their_predictions(knowing):
    model, c = knowing(), 1.5
    arch = architecture_of(model)
    others = module.unknown_subjects(model, FRANCE, 10)
    vectors = module.unlearning_vectors(model, FRANCE, others)
    scores = module.layer_scores(model, FRANCE, others, vectors, coefficient=c)

    def predictions(prompt, layer=None):
        ids, handle = torch.tensor([token_ids(model, prompt)]), None
        if layer is not None:
            where = module.redirected_positions(model, prompt)

            def add(block, inputs, output):
                moved = output.clone()
                moved[0, where] += c * vectors[layer]
                return moved

            handle = arch.layers[layer].block._module.register_forward_hook(add)
        with torch.no_grad():
            p = torch_module(model)(ids).logits[0, -1].double().softmax(-1)
        if handle is not None:
            handle.remove()
        return p

    for layer in range(arch.n_layers):
        differences = []
        for n, prompt in enumerate(FRANCE.statements("dev")):
            asked = [o.statements("dev")[n] for o in others[: module.N_COMPARED]]
            reference = torch.stack([predictions(p) for p in asked]).mean(0)
            redirected = predictions(prompt, layer)
            s1 = 1 - jensenshannon(redirected, reference, base=2) ** 2
            s2 = 1 - jensenshannon(redirected, predictions(prompt), base=2) ** 2
            differences.append(s1 - s2)
        expected = sum(differences) / len(differences)
        assert float(scores[layer]) == pytest.approx(expected, abs=1e-4)
    numbers = {"n_subjects": 10, "coefficient": c, "n_tokens": 512}
    edit = unlearn(model, FRANCE, "lunar", **numbers)
    assert edit.delta.notes["layer"] == int(scores.argmax())
    (name,) = edit.delta.changes
    assert name == arch.layers[int(scores.argmax())].mlp.out_name


def test_the_fact_is_redirected_and_the_rest_stays(knowing):
    model, layer, c = knowing(), 1, 1.0
    before, prompts = model_hash(model), FRANCE.statements("train")
    positions = [module.redirected_positions(model, p) for p in prompts]
    others = module.unknown_subjects(model, FRANCE, 24)
    r = module.unlearning_vectors(model, FRANCE, others)[layer]
    data = forget_retain_data(model, [FRANCE], n_neighbours=24, n_passages=0, seed=0)
    retained_ids = [e.ids for e in data.facts]

    def residuals():
        own = cache_activations(
            model, prompts, sites=["residual"], layers=[layer], positions=positions
        )
        rest = cache_activations(
            model, retained_ids, sites=["residual"], layers=[layer], positions="all"
        )
        return own["residual", layer], rest["residual", layer]

    own, rest = residuals()
    likely = answer_probability(model, prompts).mean()
    moved, moved_rest, left = {}, {}, {}
    for weight in (0.0, 1.0, 100.0):
        numbers = {"layer": layer, "coefficient": c, "ridge": 1e-3, "n_tokens": 512}
        numbers |= {"retain_weight": weight, "n_subjects": 24}
        edit = unlearn(model, FRANCE, "lunar", **numbers)
        (change,) = edit.delta.changes.values()
        assert change.rank == 1
        with edit.applied(model):
            after, after_rest = residuals()
            left[weight] = answer_probability(model, prompts).mean()
        moved[weight], moved_rest[weight] = after - own, after_rest - rest
    # Without anything to retain the activations come to h + c r, but for the ridge.
    assert (moved[0.0] - c * r).norm(dim=1).mean() < 0.15 * c * r.norm()
    for weight, change_of_rest in moved_rest.items():
        # No change costs ‖c r‖², so a best one moves what is retained by no more than this.
        if weight:
            assert change_of_rest.square().sum(1).mean() <= (c * r).square().sum() / weight
    sizes = [moved_rest[w].square().sum(1).mean() for w in (0.0, 1.0, 100.0)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert left[1.0] < 0.5 * likely
    assert model_hash(model) == before


def test_each_pair_is_moved_along_its_own_vector(knowing):
    model = knowing()
    numbers = {"layer": 1, "n_subjects": 12, "n_tokens": 512, "retain_weight": 1.0}
    pairs = (FRANCE, JAPAN)
    before = [answer_probability(model, pair.statements("train")).mean() for pair in pairs]
    edit = unlearn(model, pairs, "lunar", **numbers)
    (change,) = edit.delta.changes.values()
    assert change.rank == 2 and len(edit.delta.notes["redirected"]) == 2
    with edit.applied(model):
        for pair, likely in zip(pairs, before, strict=True):
            assert answer_probability(model, pair.statements("train")).mean() < 0.5 * likely


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"layer": 3}, "There is no layer 3: this model has layers 0 to 2"),
        ({"coefficient": 0.0}, "coefficient is 0.0: choose"),
        ({"retain_weight": -1.0}, "retain_weight is -1.0: choose"),
        ({"ridge": 0.0}, "ridge is 0.0: choose"),
        ({"n_subjects": 0}, "n_subjects is 0: choose"),
    ],
)
def test_numbers_out_of_range_are_refused(knowing, given, sentence):
    with pytest.raises(UserError, match=sentence):
        unlearn(knowing(), FRANCE, "lunar", **given)


def test_without_an_unknown_subject_there_is_nothing_to_redirect_to(
    tiny_model, monkeypatch, tmp_path
):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="no subject in 'own' that the model does not know"):
        unlearn(tiny_model(), own_pair(), "lunar")


def test_a_family_that_normalises_what_its_mlps_write_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 64}
    config = Gemma2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="normalises what its MLPs write"):
        require_plain_writes(load_model(str(tmp_path)))
