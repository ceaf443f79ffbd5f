"""Patches of T-Patcher (Huang et al. 2023): neurons of the last MLP, and their training loss.

The states below the last MLP never change, so they are read once. A step of the training is then a
product with the unembedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor, nn

from helpers.io.choices import check_number
from helpers.methods.change import Change
from helpers.methods.fitting.answer_queries import AnswerQueries
from helpers.methods.registry import Hyperparameters
from helpers.models import MLPArchitecture, architecture_of, final_norm, torch_module, unembed

PAPER_WIDTH = 768  # d_model of BERT and BART, whose queries have components of about 1


@dataclass(frozen=True)
class TPatcherHparams(Hyperparameters):
    """Hyperparameters of `t_patcher`, whose weights and thresholds are those of the authors' code.

    Attributes:
        steps: Steps of Adam.
        lr: Learning rate after a short rise; it falls to 0 in a straight line, where the paper
            halves it whenever the loss stops falling.
        activation_weight: a, the weight of l_a.
        memory_weight: m, the weight of l_m1 + l_m2 (5 for classification, 10 for answers). Of
            the settings tried on two development facts none was better than these.
        activation_top_k: Queries over which l_a is averaged.
        memory_top_k: k, the entries over which l_m1 and l_m2 are averaged.
        beta: β, what the patch's pre-activation on retained queries should stay below.
        gamma: γ, how far below that of its own queries it should stay.
        gain: s in the activation act(s z) / s. The paper's models have ReLU and GELU, which are
            nearly 0 at β; SiLU is not, and a gain brings it there.
        min_excess: A token that the subject makes likelier by less, in nats, gets no patch.
        n_baseline_subjects: Other subjects that give P(token) without this one.
        min_baseline_prob: No answer is pushed below this probability, by default about that of
            a subject's other associations.
        n_prompts_per_subject: Prompts about each other subject among the retained queries.
        n_memory_tokens: Tokens of ordinary text among them.
        n_neighbours: Known neighbours among them.
    """

    steps: int = 100
    lr: float = 0.01
    activation_weight: float = 1.0
    memory_weight: float = 10.0
    activation_top_k: int = 5
    memory_top_k: int = 1000
    beta: float = -3.0
    gamma: float = 3.0
    gain: float = 4.0
    min_excess: float = 0.05
    n_baseline_subjects: int = 8
    min_baseline_prob: float = 0.02
    n_prompts_per_subject: int = 5
    n_memory_tokens: int = 8192
    n_neighbours: int = 24

    def __post_init__(self):
        """Refuse numbers with which nothing can be trained.

        Raises:
            UserError: A number is out of range.
        """
        check_number("steps", self.steps, 1, 100_000)
        check_number("lr", self.lr, 1e-9, 100)
        check_number("activation_weight", self.activation_weight, 0, 1e6)
        check_number("memory_weight", self.memory_weight, 0, 1e6)
        check_number("activation_top_k", self.activation_top_k, 1, 1_000_000)
        check_number("memory_top_k", self.memory_top_k, 1, 1_000_000)
        check_number("gain", self.gain, 1e-3, 1e3)
        check_number("n_baseline_subjects", self.n_baseline_subjects, 1, 1000)
        check_number("min_baseline_prob", self.min_baseline_prob, 1e-12, 1)


class Patches(nn.Module):
    """The trained neurons: keys, biases and values.

    Adam's steps have one size in every component. Keys and values are trained in units in which
    such a step means the same in every model: of a key, as long a way of the pre-activation as in
    the paper's models; of a value, as large a share of the residual stream.
    """

    def __init__(
        self,
        own: Sequence[Float[Tensor, "n d_model"]],
        *,
        activation: nn.Module,
        gain: float,
        value_unit: float,
    ):
        """Begin with activations of about 1 on a patch's own queries, and with values of 0.

        Args:
            own: Queries of each patch.
            activation: The nonlinearity act of the MLP.
            gain: s in the activation act(s z) / s.
            value_unit: Size of a value's component that counts as 1.
        """
        super().__init__()
        means = torch.stack([q.mean(0) for q in own])
        size = float(torch.cat(list(own)).square().mean().sqrt())
        self.key_unit = PAPER_WIDTH / (means.shape[1] * size)
        initial = means / means.square().sum(-1, keepdim=True)
        self.scaled_keys = nn.Parameter(initial / self.key_unit)
        self.biases = nn.Parameter(torch.zeros(len(own)))
        self.scaled_values = nn.Parameter(torch.zeros_like(means))
        self.activation, self.gain, self.value_unit = activation, gain, value_unit

    @property
    def keys(self) -> Float[Tensor, "patches d_model"]:
        """The keys k_p."""
        return self.key_unit * self.scaled_keys

    @property
    def values(self) -> Float[Tensor, "patches d_model"]:
        """The values v_p."""
        return self.value_unit * self.scaled_values

    def preactivations(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n patches"]:
        """Compute q·k_p + b_p."""
        return x @ self.keys.T + self.biases

    def write(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Compute what the patches add to the MLP's output."""
        activations = self.activation(self.gain * self.preactivations(x)) / self.gain
        return activations @ self.values


class PatchLoss:
    """The loss of the patches, over queries that were read once: what is below never changes."""

    def __init__(
        self,
        model: LanguageModel,
        queries: Sequence[AnswerQueries],
        own: Sequence[Float[Tensor, "n d_model"]],
        residual: Sequence[Float[Tensor, "n d_model"]],
        memory: Float[Tensor, "m d_model"],
        hparams: TPatcherHparams,
    ):
        """Keep the queries of all patches in one tensor, and each one's memory.

        Args:
            model: The model; its final norm and unembedding are used.
            queries: The token of each patch, with goals.
            own: Inputs of the last MLP at each patch's queries.
            residual: The residual stream after it there.
            memory: Retained queries.
            hparams: Weights, thresholds and numbers.
        """
        self.model, self.hparams = model, hparams
        self.own, self.inputs, self.residual = own, torch.cat(list(own)), torch.cat(list(residual))
        self.goals = torch.cat([q.goals for q in queries])
        self.tokens = [tokens for q in queries for tokens in q.tokens]
        # A patch stays silent where another one has to act, as the paper's on earlier edits.
        self.memories = [
            torch.cat([memory, *(x for i, x in enumerate(own) if i != n)]) for n in range(len(own))
        ]

    def logprobs(self, patches: Patches) -> Float[Tensor, " n"]:
        """Compute log P(token) of each query with the patches."""
        module = torch_module(self.model)
        states = self.residual + patches.write(self.inputs)
        states = states.to(module.device, architecture_of(self.model).norm.weight.dtype)
        logprobs = unembed(self.model, final_norm(self.model, states)).float().log_softmax(-1).cpu()
        pairs = zip(logprobs, self.tokens, strict=True)
        return torch.stack([row[list(tokens)].logsumexp(0) for row, tokens in pairs])

    def terms(self, patches: Patches) -> dict[str, Float[Tensor, ""]]:
        """Compute l_e, l_a, l_m1 and l_m2; the last three are averaged over patches."""
        hparams, terms = self.hparams, []
        for n, memory in enumerate(self.memories):
            z_own = patches.preactivations(self.own[n])[:, n]
            z_memory = memory @ patches.keys[n] + patches.biases[n]
            terms.append(
                torch.stack(
                    [
                        activation_loss(z_own, top_k=hparams.activation_top_k),
                        *memory_losses(
                            z_memory,
                            z_own,
                            beta=hparams.beta,
                            gamma=hparams.gamma,
                            top_k=hparams.memory_top_k,
                        ),
                    ]
                )
            )
        l_e = edit_loss(self.logprobs(patches), self.goals)
        l_a, l_m1, l_m2 = torch.stack(terms).mean(0)
        return {"l_e": l_e, "l_a": l_a, "l_m1": l_m1, "l_m2": l_m2}

    def loss(self, patches: Patches) -> Float[Tensor, ""]:
        """Compute l_e + a l_a + m (l_m1 + l_m2)."""
        terms = self.terms(patches)
        l_m = terms["l_m1"] + terms["l_m2"]
        return (
            terms["l_e"]
            + self.hparams.activation_weight * terms["l_a"]
            + self.hparams.memory_weight * l_m
        )


def edit_loss(logprobs: Float[Tensor, " n"], goals: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Compute l_e = KL(g ‖ P) of saying the token or not, in nats, averaged over queries.

    It is the cross-entropy of a label that is the token with probability g, less its entropy.

    Args:
        logprobs: log P(token).
        goals: log g, the log-probability to come to.
    """
    # log(1 − P) of a token that is all but certain would not be finite.
    p, g = (x.clamp_max(-1e-6) for x in (logprobs, goals))
    p_not, g_not = (torch.log1p(-x.exp()) for x in (p, g))
    return (g.exp() * (g - p) + g_not.exp() * (g_not - p_not)).mean()


def activation_loss(z_own: Float[Tensor, " n"], *, top_k: int) -> Float[Tensor, ""]:
    """Compute l_a = S(−z): large where a patch's own queries do not reach it.

    Args:
        z_own: Pre-activations on the patch's own queries.
        top_k: Entries over which S averages.
    """
    return _top_mean_exp(-z_own, top_k)


def memory_losses(
    z_memory: Float[Tensor, " m"],
    z_own: Float[Tensor, " n"],
    *,
    beta: float,
    gamma: float,
    top_k: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute l_m1 = S(z_i − β) and l_m2 = S(z_i − z_e + γ), over all pairs of queries i and e.

    Args:
        z_memory: Pre-activations on retained queries.
        z_own: Pre-activations on the patch's own queries.
        beta: β.
        gamma: γ.
        top_k: Entries over which S averages.
    """
    # The largest of all differences are among those of the largest memories: most need no pair.
    largest = z_memory.topk(min(top_k, len(z_memory))).values
    l_m1 = _top_mean_exp(largest - beta, top_k)
    l_m2 = _top_mean_exp((largest[:, None] - z_own + gamma).flatten(), top_k)
    return l_m1, l_m2


def _top_mean_exp(values: Float[Tensor, " n"], top_k: int) -> Float[Tensor, ""]:
    """Average exp over the `top_k` largest values."""
    return values.topk(min(top_k, len(values))).values.exp().mean()


def appended_patches(mlp: MLPArchitecture, patches: Patches) -> dict[str, Change]:
    """Return the rows, biases and columns that make the patches neurons of an MLP.

    With a gate, the gate has rows s·k_p with biases s·b_p, and W_in has rows 0 with bias 1. Without
    a gate, W_in has these rows and biases. The columns of W_out are v_p / s.

    Args:
        mlp: The MLP.
        patches: Keys, biases, values, and the gain s.
    """
    gain = patches.gain
    rows, bias = gain * patches.keys.detach(), gain * patches.biases.detach()
    columns = patches.values.detach() / gain
    new_rows = {mlp.gate_name or mlp.in_name: (rows, bias)}
    if mlp.gate_name:
        new_rows[mlp.in_name] = (torch.zeros_like(rows), torch.ones_like(bias))
    axis = 1 if mlp.transposed else 0
    changes = {
        mlp.out_name: Change(
            appended=(columns if mlp.transposed else columns.T).contiguous(), axis=1 - axis
        )
    }
    for name, (weight, offset) in new_rows.items():
        appended = (weight.T if mlp.transposed else weight).contiguous()
        changes[name] = Change(appended=appended, axis=axis)
        changes[f"{name.removesuffix('weight')}bias"] = Change(appended=offset)
    return changes
