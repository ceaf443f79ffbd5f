"""Second moments of keys."""

import pytest
import torch

from helpers.methods.fitting.layer_stats import key_covariance
from helpers.models import architecture_of, torch_module


@pytest.mark.parametrize("site", ["neurons", "mlp_in"])
def test_covariance_is_the_plain_second_moment(tiny_model, monkeypatch, tmp_path, site):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))
    model = tiny_model()
    tokens = torch.randint(4, 60, (9, 128), generator=torch.Generator().manual_seed(0))
    module_name = "helpers.methods.fitting.layer_stats"
    monkeypatch.setattr(f"{module_name}.corpus_tokens", lambda *a, **k: tokens)
    covariance = key_covariance(model, layers=[-1], n_tokens=1152, site=site)[2]
    mlp = architecture_of(model).layers[2].mlp
    module, inputs = (mlp.out_module if site == "neurons" else mlp.in_module), []
    hook = module.register_forward_pre_hook(lambda m, x: inputs.append(x[0].double()))
    with torch.inference_mode():
        torch_module(model)(tokens)
    hook.remove()
    keys = inputs[0].flatten(0, 1)
    torch.testing.assert_close(covariance, keys.T @ keys / len(keys), rtol=1e-4, atol=1e-7)
    monkeypatch.setattr(f"{module_name}.second_moments", None)  # now it comes from the cache
    assert torch.equal(key_covariance(model, layers=[2], n_tokens=1152, site=site)[2], covariance)
