"""Parameters by name: which ones are trained, and the others frozen."""

import contextlib
from collections.abc import Iterator, Sequence

from nnsight import LanguageModel
from torch import nn

from helpers.errors import UserError
from helpers.models import architecture_of

KINDS = ("all", "mlps", "values")


@contextlib.contextmanager
def trainable(
    module: nn.Module, parameters: Sequence[str] | None = None
) -> Iterator[dict[str, nn.Parameter]]:
    """Turn gradients on for the named parameters alone, within a `with` block.

    Args:
        module: A torch module.
        parameters: Names; all parameters by default.

    Yields:
        Name → parameter of the named ones.

    Raises:
        UserError: There is no such parameter, or none is named.
    """
    parameters_by_name = dict(module.named_parameters())
    names = list(parameters_by_name) if parameters is None else list(dict.fromkeys(parameters))
    for name in names:
        if name not in parameters_by_name:
            raise UserError(f"The model has no parameter {name} that could be trained.")
    if not names:
        raise UserError("There is no parameter to train: name at least one.")
    had_gradient = {name: p.requires_grad for name, p in parameters_by_name.items()}
    try:
        for name, p in parameters_by_name.items():
            p.requires_grad_(name in set(names))
        yield {name: parameters_by_name[name] for name in names}
    finally:
        for name, p in parameters_by_name.items():
            p.requires_grad_(had_gradient[name])
            p.grad = None


def choose_parameters(
    model: LanguageModel, which: str = "all", *, layers: Sequence[int] | None = None
) -> list[str]:
    """List the names of the parameters of a kind, in the given layers or in all.

    Args:
        model: Any model of a known family.
        which: `all` (every parameter), `mlps` (the matrices of the MLPs), `values` (their last
            matrices), or names of matrices inside a block separated by commas: `q_proj, v_proj`.
        layers: Layers; all by default, and then `all` includes embeddings and final norm.

    Raises:
        UserError: There is no such layer, or no parameter of that name.
    """
    arch, module = architecture_of(model), model._module
    chosen = range(arch.n_layers) if layers is None else [arch.check_layer(i) for i in layers]
    if which == "all" and layers is None:
        return [name for name, _ in module.named_parameters()]
    mlps = [arch.layers[i].mlp for i in dict.fromkeys(chosen)]
    if which == "values":
        return [mlp.out_name for mlp in mlps]
    if which == "mlps":
        return [n for mlp in mlps for n in (mlp.gate_name, mlp.in_name, mlp.out_name) if n]
    paths = {id(m): name for name, m in module.named_modules()}
    names: list[str] = []
    for i in dict.fromkeys(chosen):
        block = arch.layers[i].block._module
        base = paths[id(block)]
        inside = {name: f"{base}.{name}" for name, _ in block.named_parameters()}
        if which == "all":
            names += inside.values()
            continue
        for path in (p.strip() for p in which.split(",")):
            matches = [n for n in inside if f".{n}".endswith(f".{path}.weight")]
            if not matches:
                linear = [
                    n.removesuffix(".weight") for n, p in block.named_parameters() if p.ndim > 1
                ]
                raise UserError(
                    f"The model's blocks have no matrix '{path}': choose {', '.join(KINDS)} or "
                    f"from {', '.join(linear)}."
                )
            names += [inside[n] for n in matches]
    return names
