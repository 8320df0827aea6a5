"""Permutation groups of many timm and open_clip models, each proven or refused with its reason.

python tests/benchmarks/align_models.py --out rows.jsonl [PATTERN…]

Every model is built with random weights at a small image size, its groups are derived, all of them are
permuted at random at once on the initial and on fully randomised weights, and negative controls are run. Rows
are appended to --out (models that are there already are skipped), and the table of all rows is printed as
Markdown.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import soupkit.task.torchvision_ops  # noqa: F401
from soupkit.align.graph.trace import permutation_spec
from soupkit.align.graph.verify import verify
from soupkit.errors import SoupkitError
from soupkit.jobs.align.groups import share_of_parameters
from soupkit.stages.alignment.examples import example_inputs
from soupkit.task.images.models import build, parse_model

TIMM = {
    "ResNet": "resnet18 resnet50 resnet50d wide_resnet50_2 seresnet50 ecaresnet26t",
    "ResNeXt": "resnext50_32x4d",
    "ResNetV2": "resnetv2_50 resnetv2_50x1_bit",
    "SKNet": "skresnet18",
    "ResNeSt": "resnest14d",
    "Res2Net": "res2net50_26w_4s",
    "VGG": "vgg11 vgg11_bn",
    "DenseNet": "densenet121",
    "RDNet": "rdnet_tiny",
    "DPN": "dpn68",
    "DLA": "dla34",
    "HRNet": "hrnet_w18_small",
    "Inception": "inception_v3:128 inception_v4:128 inception_resnet_v2:128",
    "Xception": "xception41 legacy_xception",
    "SelecSLS": "selecsls42b",
    "CSPNet": "cspresnet50 cspdarknet53 darknet53",
    "VoVNet": "ese_vovnet19b_dw",
    "TResNet": "tresnet_m",
    "HGNet": "hgnet_tiny hgnetv2_b0",
    "RepVGG": "repvgg_a0",
    "MobileOne": "mobileone_s0",
    "GENet": "gernet_s",
    "RegNet": "regnetx_002 regnety_002 regnetz_b16",
    "NFNet": "dm_nfnet_f0 nf_resnet50 nf_regnet_b0 eca_nfnet_l0",
    "EfficientNet": "efficientnet_b0 tf_efficientnetv2_b0 mixnet_s mnasnet_050 fbnetc_100 tinynet_e",
    "MobileNet": "mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small lcnet_050",
    "GhostNet": "ghostnet_100",
    "ReXNet": "rexnet_100",
    "RepViT": "repvit_m0_9",
    "StarNet": "starnet_s1",
    "ConvNeXt": "convnext_atto convnextv2_atto",
    "ConvMixer": "convmixer_1024_20_ks9_p14",
    "InceptionNeXt": "inception_next_atto",
    "MambaOut": "mambaout_femto",
    "MetaFormer": "poolformer_s12 caformer_s18 convformer_s18",
    "FocalNet": "focalnet_tiny_srf",
    "Attention ResNets": "botnet26t_256:256 halonet26t:256 lambda_resnet26t bat_resnext26ts:256",
    "Mixer": "mixer_s32_224 gmixer_24_224",
    "ResMLP": "resmlp_12_224",
    "gMLP": "gmlp_ti16_224",
    "Sequencer": "sequencer2d_s",
    "ViT": "vit_tiny_patch16_224 vit_small_patch32_224 flexivit_small test_vit",
    "ViT (relative position, RoPE, registers)": "vit_relpos_small_patch16_224 vit_small_patch16_rope_224 "
    "vit_small_patch16_dinov3 vit_small_patch14_reg4_dinov2:70",
    "SigLIP": "vit_base_patch16_siglip_224",
    "DeiT": "deit_tiny_distilled_patch16_224 deit3_small_patch16_224",
    "BEiT": "beit_base_patch16_224",
    "EVA02": "eva02_tiny_patch14_224:224",
    "CaiT": "cait_xxs24_224",
    "XCiT": "xcit_nano_12_p16_224",
    "CrossViT": "crossvit_tiny_240:240",
    "CoaT": "coat_lite_tiny:224",
    "ConViT": "convit_tiny:224",
    "PiT": "pit_ti_224:224",
    "TNT": "tnt_s_legacy_patch16_224",
    "VOLO": "volo_d1_224",
    "Visformer": "visformer_tiny",
    "NesT": "nest_tiny:224",
    "LeViT": "levit_128s:224",
    "PVT": "pvt_v2_b0",
    "Twins": "twins_svt_small twins_pcpvt_small",
    "Swin": "swin_tiny_patch4_window7_224:112 swinv2_tiny_window8_256:128 swinv2_cr_tiny_ns_224:112",
    "MaxViT": "maxvit_rmlp_pico_rw_256:128 maxvit_tiny_rw_224:128",
    "CoAtNet": "coatnet_nano_rw_224:224 coatnet_rmlp_nano_rw_224:224",
    "DaViT": "davit_tiny",
    "GCViT": "gcvit_xxtiny:224",
    "Hiera": "hiera_tiny_224:224",
    "TinyViT": "tiny_vit_5m_224:224",
    "MobileViT": "mobilevit_xxs mobilevitv2_050",
    "EdgeNeXt": "edgenext_xx_small",
    "EfficientFormer": "efficientformer_l1:224 efficientformerv2_s0:224",
    "EfficientViT": "efficientvit_b0 efficientvit_m0:224",
    "FastViT": "fastvit_t8",
    "NextViT": "nextvit_small",
    "SwiftFormer": "swiftformer_xs",
    "SHViT": "shvit_s1:128",
}
OPEN_CLIP = (
    "ViT-B-32 RN50 ViT-B-16-SigLIP EVA02-B-16 MobileCLIP-S1 convnext_base coca_ViT-B-32 ViT-B-32-quickgelu "
    "ViTamin-S ViT-M-32 ViT-S-32-alt"
)
DEFAULT_SIZE = 64


def models() -> Iterator[tuple[str, str]]:
    """(family, what --model takes) of every model."""
    for family, names in TIMM.items():
        for entry in names.split():
            name, _, size = entry.partition(":")
            yield family, f"timm:{name},img_size={size or DEFAULT_SIZE}"
    for name in OPEN_CLIP.split():
        yield "open_clip", f"open_clip:{name}"


def study(family: str, name: str, *, num_controls: int, dtype: torch.dtype | None) -> dict[str, Any]:
    """One row: what was found of one model, or why it was refused."""
    row: dict[str, Any] = {"model": name, "family": family}
    torch.manual_seed(0)
    try:
        described = parse_model(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = build(described)
        inputs = example_inputs(model, described)
        start = time.perf_counter()
        spec = permutation_spec(model, inputs)
        row |= {"trace_seconds": time.perf_counter() - start, "gave_up": spec.notes["gave_up"]}
        row |= {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        row |= {"groups": len(spec.groups), "families": len(spec.families())}
        row |= {"share": share_of_parameters(spec, model)}
        if num_controls:
            start = time.perf_counter()
            checked = verify(model, spec, inputs, num_controls=num_controls, dtype=dtype)
            row |= {"proof_seconds": time.perf_counter() - start, **checked.to_json()}
            row |= {"groups": len(checked.spec.groups), "share": share_of_parameters(checked.spec, model)}
    except SoupkitError as error:
        row |= {"refused": str(error).splitlines()[0]}
    return row


def verdict(row: dict[str, Any]) -> str:
    """What to say of a row."""
    if "refused" in row:
        return f"refused: {row['refused']}"
    if row.get("culprits"):
        return f"passes with {len(row['culprits'])} families pinned by the check"
    return "passes" if "errors" in row else "not run"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = (
        "family",
        "model",
        "params (M)",
        "groups",
        "share",
        "error",
        "error (randomised)",
        "in",
        "least control",
    )
    lines = [
        "| " + " | ".join((*head, "unobserved", "trace s", "proof s", "verdict")) + " |",
        "|---" * 13 + "|",
    ]
    for row in rows:
        errors, controls = row.get("errors", {}), row.get("controls", {})
        least = min(controls.values(), default=0.0)
        cells = (
            row["family"],
            row["model"],
            f"{row.get('parameters', 0) / 1e6:.1f}",
            row.get("groups", ""),
            f"{row.get('share', 0):.3f}",
            *(f"{errors[name]:.1e}" if name in errors else "" for name in ("actual", "randomised")),
            row.get("dtype", ""),
            f"{least:.1e}",
            len(row.get("unobservable", ())),
            f"{row.get('trace_seconds', 0):.1f}",
            f"{row.get('proof_seconds', 0):.1f}",
            verdict(row),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Study what is not in --out yet, then print everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=["*"], help="of model names; * and ? work")
    parser.add_argument("--out", type=Path, default=Path("align_models.jsonl"))
    parser.add_argument(
        "--controls", type=int, default=6, help="negative controls; 0 only follows the graphs"
    )
    parser.add_argument(
        "--single", action="store_true", help="check in float32, to halve the time of large models"
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further model after so long")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done, start = {row["model"] for row in rows}, time.perf_counter()
    for family, name in models():
        wanted = any(fnmatch.fnmatchcase(name, f"*{pattern}*") for pattern in options.patterns)
        if name in done or not wanted or time.perf_counter() - start > options.seconds:
            continue
        rows.append(
            study(
                family, name, num_controls=options.controls, dtype=torch.float32 if options.single else None
            )
        )
        with options.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
