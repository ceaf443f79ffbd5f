"""SAEs as files: ours come back, SAELens's are understood, and both give the same numbers."""

import json
import os
import subprocess
import sys

import pytest
import torch
from peers import peer_python
from safetensors.torch import load_file, save_file

from helpers.errors import UserError
from helpers.sae import ARCHITECTURES, SAEConfig, build, load_pretrained, load_sae, save_sae

NUMBERS = {
    "relu": {"sparsity": 0.3},
    "gated": {"sparsity": 0.3},
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "jumprelu": {"sparsity": 0.3},
    "matryoshka": {"k": 3},
}
X = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))


def make(architecture: str, **more):
    sae = build(SAEConfig(architecture, d_in=8, d_sae=32, layer=3, **NUMBERS[architecture] | more))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in sae.parameters():
            p += 0.2 * torch.randn(p.shape, generator=draw)
        for name in ("threshold", "last"):
            if name in dict(sae.named_buffers()):
                getattr(sae, name).fill_(0.5)
        sae.unit_decoder()
    return sae.eval()


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("transcodes", [False, True], ids=["sae", "transcoder"])
def test_a_saved_sae_comes_back_as_what_it_was(tmp_path, architecture, transcodes):
    more = {"site": "mlp_in", "target": "mlp", "d_out": 6} if transcodes else {"site": "mlp"}
    sae = make(architecture, **more)
    save_sae(sae, tmp_path / "sae")
    back = load_sae(tmp_path / "sae")
    assert type(back) is type(sae)
    assert back.cfg == sae.cfg
    assert torch.allclose(back(X), sae(X), atol=1e-6)
    assert torch.equal(back.encode(X) > 0, sae.encode(X) > 0)


def test_damaged_or_unknown_files_are_told_in_one_sentence(tmp_path):
    folder = tmp_path / "sae"
    save_sae(make("topk"), folder)
    weights, config = folder / "sae_weights.safetensors", folder / "cfg.json"
    good, numbers = weights.read_bytes(), json.loads(config.read_text())

    def refused(sentence: str):
        with pytest.raises(UserError, match=sentence) as caught:
            load_sae(folder)
        assert "\n" not in str(caught.value)

    weights.write_bytes(good[:-20])
    refused("is damaged")
    weights.write_bytes(good)
    for change, sentence in [
        ({"architecture": "temporal", "metadata": {}}, "architecture 'temporal' is not known"),
        ({"metadata": {}, "normalize_activations": "layer_norm"}, "normalises its input"),
        ({"metadata": {}, "d_sae": 33}, "does not hold an SAE|is .* and should be"),
        ({"metadata": {}, "d_in": None}, "does not hold an SAE"),
    ]:
        config.write_text(json.dumps(numbers | change))
        refused(sentence)
    config.unlink()
    refused("is missing")


def test_without_saelens_a_published_sae_is_refused_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(UserError, match="SAELens, which is not installed"):
        load_pretrained("gpt2-small-res-jb", "blocks.8.hook_resid_pre")


LENS = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE
from sae_lens.saes import *
from sae_lens.saes.transcoder import *
folder = Path(sys.argv[1])
x = load_file(folder / "x.safetensors")["x"]

def keep(sae, place):
    with torch.no_grad():
        found = {"latents": sae.encode(x), "out": sae(x)}
    save_file({k: v.contiguous() for k, v in found.items()}, place / "seen.safetensors")

for ours in sorted((folder / "ours").iterdir()):
    sae = SAE.load_from_disk(str(ours))
    keep(sae, ours)
torch.manual_seed(0)
kinds = [
    (StandardSAE, StandardSAEConfig(d_in=8, d_sae=32)),
    (GatedSAE, GatedSAEConfig(d_in=8, d_sae=32)),
    (TopKSAE, TopKSAEConfig(d_in=8, d_sae=32, k=3)),
    (TopKSAE, TopKSAEConfig(d_in=8, d_sae=32, k=3, rescale_acts_by_decoder_norm=True)),
    (JumpReLUSAE, JumpReLUSAEConfig(d_in=8, d_sae=32, apply_b_dec_to_input=False)),
    (Transcoder, TranscoderConfig(d_in=8, d_out=6, d_sae=32, apply_b_dec_to_input=False)),
]
for i, (kind, cfg) in enumerate(kinds):
    sae = kind(cfg)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.add_(0.2 * torch.rand_like(p) if name == "threshold" else 0.2 * torch.randn_like(p))
    sae.cfg.metadata.hook_name = "blocks.5.hook_resid_pre"
    sae.save_model(folder / "theirs" / str(i))
    keep(sae, folder / "theirs" / str(i))
"""


@pytest.mark.slow
def test_saelens_and_we_read_each_others_files_and_agree(tmp_path):
    save_file({"x": X}, tmp_path / "x.safetensors")
    for name in ARCHITECTURES:
        save_sae(make(name, site="mlp"), tmp_path / "ours" / name)
    for name in ("relu", "jumprelu", "batch_topk"):
        transcoder = make(name, site="mlp_in", target="mlp", d_out=6)
        save_sae(transcoder, tmp_path / "ours" / f"{name}-transcoder")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [peer_python("sae_lens", "sae-lens==6.54.12"), "-c", LENS, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = sorted((tmp_path / "ours").iterdir()) + sorted((tmp_path / "theirs").iterdir())
    assert len(folders) == 15
    for folder in folders:
        sae = load_sae(folder)
        seen = load_file(folder / "seen.safetensors")
        assert torch.allclose(sae(X), seen["out"], atol=1e-5), folder.name
        assert torch.equal(sae.encode(X) > 0, seen["latents"] > 0), folder.name
    theirs = load_sae(tmp_path / "theirs" / "0").cfg
    assert (theirs.site, theirs.layer) == ("residual", 4)
