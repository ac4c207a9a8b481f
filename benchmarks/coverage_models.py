"""The models of `coverage.py` and `graph_cost.py`: three sets, random weights, example inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

TIMM = {
    "CNN": [
        "resnet50",
        "resnext50_32x4d",
        "seresnet50",
        "res2net50_26w_4s",
        "resnest50d",
        "densenet121",
        "efficientnet_b0",
        "tf_efficientnetv2_s",
        "mobilenetv3_large_100",
        "regnety_016",
        "convnext_tiny",
        "convnextv2_nano",
        "hrnet_w18",
        "dm_nfnet_f0",
        "repvgg_a2",
        "inception_v4",
    ],
    "ViT": [
        "vit_small_patch16_224",
        "deit3_small_patch16_224",
        "beit_base_patch16_224",
        "eva02_small_patch14_224",
        "cait_xxs24_224",
        "xcit_nano_12_p16_224",
        "pvt_v2_b1",
        "twins_svt_small",
        "volo_d1_224",
        "crossvit_small_240",
        "pit_s_224",
    ],
    "Swin": [
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "swinv2_cr_tiny_ns_224",
    ],
    "MLP-Mixer": ["mixer_s16_224", "gmlp_s16_224", "resmlp_12_224"],
    "hybrid": [
        "coatnet_0_rw_224",
        "maxvit_tiny_tf_224",
        "convit_tiny",
        "levit_128",
        "mobilevit_s",
        "poolformer_s12",
        "caformer_s18",
    ],
}


@dataclass
class Case:
    """A model with what its forward pass takes.

    Attributes:
        model: With random weights, in evaluation mode.
        inputs: Positional inputs.
        named_inputs: Named inputs.
        head: The output layers, which Torch-Pruning has to be told to leave alone.
    """

    model: nn.Module
    inputs: tuple[Any, ...] = ()
    named_inputs: dict[str, Any] = field(default_factory=dict)
    head: list[nn.Module] = field(default_factory=list)

    def outputs(self, model: nn.Module) -> list[Tensor]:
        """Return the floating-point tensors of a pass: the logits, and those of side heads."""
        out = model(*self.inputs, **self.named_inputs)
        if isinstance(out, Tensor):
            return [out]
        if hasattr(out, "logits") and isinstance(out.logits, Tensor):
            found = [
                out.logits,
                getattr(out, "aux_logits", None),
                getattr(out, "aux_logits2", None),
            ]
            return [each for each in found if isinstance(each, Tensor)]
        return [each for each in out if isinstance(each, Tensor) and each.is_floating_point()]


def names(which: str) -> list[str]:
    """Return the names of the models of a set."""
    if which == "torchvision":
        import torchvision.models

        return list(torchvision.models.list_models(torchvision.models))
    if which == "timm":
        return [name for family in TIMM.values() for name in family]
    return list(TRANSFORMERS)


def build(which: str, name: str) -> Case:
    """Return a model with random weights."""
    torch.manual_seed(0)
    made = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[which](name)
    made.model.eval()
    made.head = _head(made)
    return made


_HUGE = ("vit_h_14", "regnet_y_128gf")
"""Models of 630 million parameters, given small images, which changes no weight."""


def _torchvision(name: str) -> Case:
    import torchvision.models

    options: dict[str, Any] = {"weights": None}
    size = 299 if name == "inception_v3" else 224
    if name in _HUGE:
        size = 112
        if name.startswith("vit"):
            options["image_size"] = size
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # the slow scipy initialization
    model = torchvision.models.get_model(name, **options)
    return Case(model, (torch.randn(1, 3, size, size),))


def _timm(name: str) -> Case:
    import timm

    model = timm.create_model(name, pretrained=False, num_classes=1000)
    size = model.pretrained_cfg["input_size"]
    return Case(model, (torch.randn(1, *size),))


def _head(case: Case) -> list[nn.Module]:
    """Return the last layer that makes each output: its width is that of the output."""
    widths = {out.shape[-1] for out in case.outputs(case.model)}
    layers = [m for m in case.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    found = [
        layer
        for layer in layers
        if (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels) in widths
    ]
    return found if len(widths) == 1 and min(widths) == 1000 else found[-1:]


def _text(model_class: str, config_class: str, **config: Any) -> Case:
    import transformers

    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**config))
    ids = torch.randint(3, model.config.vocab_size, (2, 16))
    return Case(model, (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _bert(model_class: str) -> Case:
    return _text(
        model_class,
        "BertConfig",
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        vocab_size=200,
        max_position_embeddings=64,
    )


def _distilbert(model_class: str) -> Case:
    return _text(
        model_class,
        "DistilBertConfig",
        dim=64,
        n_layers=4,
        n_heads=4,
        hidden_dim=256,
        vocab_size=200,
        max_position_embeddings=64,
    )


def _vit(model_class: str) -> Case:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    model = getattr(transformers, model_class)(config)
    return Case(model, (), {"pixel_values": torch.randn(2, 3, 32, 32)})


def _gpt2(model_class: str) -> Case:
    return _text(
        model_class,
        "GPT2Config",
        n_embd=64,
        n_layer=4,
        n_head=4,
        vocab_size=200,
        n_positions=64,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def _llama(model_class: str) -> Case:
    return _text(
        model_class,
        "LlamaConfig",
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        vocab_size=200,
        max_position_embeddings=64,
        use_cache=False,
        pad_token_id=0,
    )


def _t5(model_class: str) -> Case:
    case = _text(
        model_class,
        "T5Config",
        d_model=64,
        d_kv=16,
        num_layers=4,
        num_heads=4,
        d_ff=256,
        vocab_size=200,
        use_cache=False,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    case.named_inputs["decoder_input_ids"] = torch.randint(3, 200, (2, 12))
    return case


def _whisper(model_class: str) -> Case:
    import transformers

    config = transformers.WhisperConfig(
        d_model=64,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        vocab_size=200,
        num_mel_bins=16,
        max_source_positions=32,
        max_target_positions=32,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    model = getattr(transformers, model_class)(config)
    named = {
        "input_features": torch.randn(2, 16, 64),
        "decoder_input_ids": torch.randint(3, 200, (2, 12)),
    }
    return Case(model, (), named)


TRANSFORMERS: dict[str, Callable[[str], Case]] = {
    "BertForSequenceClassification": _bert,
    "BertForMaskedLM": _bert,
    "DistilBertForSequenceClassification": _distilbert,
    "DistilBertForMaskedLM": _distilbert,
    "ViTForImageClassification": _vit,
    "GPT2LMHeadModel": _gpt2,
    "GPT2ForSequenceClassification": _gpt2,
    "LlamaForCausalLM": _llama,
    "LlamaForSequenceClassification": _llama,
    "T5ForConditionalGeneration": _t5,
    "WhisperForConditionalGeneration": _whisper,
}


def _transformers(name: str) -> Case:
    return TRANSFORMERS[name](name)


def torch_pruner(case: Case, ratio: float) -> Any:
    """Return Torch-Pruning's pruner as documented: magnitude, default settings, one step."""
    import torch_pruning as tp

    return tp.pruner.BasePruner(
        case.model,
        case.named_inputs or case.inputs[0],
        importance=tp.importance.MagnitudeImportance(),
        pruning_ratio=ratio,
        ignored_layers=case.head,
        output_transform=lambda out: out.logits if hasattr(out, "logits") else out,
    )
