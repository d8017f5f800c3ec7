"""What headers and source tell of a model is what the model itself tells, family by family."""

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import transformers_weight_conversion
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from finetune_api.adapters import Lora
from finetune_trainer.adapters import adapter_parameters, check_modules
from finetune_trainer.errors import UserError
from finetune_trainer.fits import PLAIN, misfits
from finetune_trainer.modelcode import read_code
from finetune_trainer.skeleton import EXPERTS_ADAPTED, Skeleton

FAMILIES = [
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "granite", "cohere",
    "smollm3", "gpt2", "opt", "bloom", "gptj", "falcon", "mpt", "stablelm", "starcoder2",
    # Their experts are one tensor in the model, and one tensor each in the files.
    "mixtral", "qwen3_moe", "deepseek_v3", "olmoe", "gpt_oss",
    # Layers of several kinds.
    "qwen3_next", "jamba", "lfm2",
]  # fmt: skip
WHOLE = ("jamba", "lfm2")
ADAPTABLE = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
Pair = tuple[Any, Skeleton]


def built(family: str) -> Pair:
    """Return a model of few layers without weights, and its skeleton from names and shapes."""
    config = CONFIG_MAPPING[family]()
    if family not in WHOLE:
        config.num_hidden_layers = 4
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:4]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model, skeleton_of(model)


def skeleton_of(model: Any) -> Skeleton:
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    names -= model.all_tied_weights_keys.keys()
    held = {name: weight for name, weight in model.state_dict().items() if name in names}
    saved = revert_weight_conversion(model, held)
    shapes = {name: tuple(weight.shape) for name, weight in saved.items()}
    causal_class = type(model).__name__
    code = read_code(model.config, causal_class)
    return Skeleton(model.config.get_text_config(), causal_class, shapes, code)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Pair:
    return built(request.param)


def test_modules_that_take_an_adapter(pair: Pair) -> None:
    model, skeleton = pair
    named = model.named_modules()
    wanted = {name.split(".")[-1] for name, module in named if isinstance(module, ADAPTABLE)}
    found = {path.split(".")[-1] for path, m in skeleton.modules.items() if m.adaptable}
    assert found == wanted


def test_every_module_and_no_other_is_known(pair: Pair) -> None:
    model, skeleton = pair
    for name, module in model.named_modules():
        leaf = name.split(".")[-1]
        if isinstance(module, ADAPTABLE) and not leaf.isdigit():
            check_modules(Lora(target_modules=[leaf]), skeleton)
    with pytest.raises(UserError, match="no_such_module"):
        check_modules(Lora(target_modules=["no_such_module"]), skeleton)


def test_embeddings_and_attention(pair: Pair) -> None:
    model, skeleton = pair
    assert skeleton.embeddings == model.get_input_embeddings().num_embeddings
    supported = bool(skeleton.code.setting(skeleton.causal_class, "_supports_sdpa"))
    assert supported == type(model)._supports_sdpa


def test_its_own_weights_fit(pair: Pair) -> None:
    assert misfits(pair[1]) == []


def test_trained_weights_are_those_that_peft_makes(pair: Pair) -> None:
    model, skeleton = pair
    config = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
    with warnings.catch_warnings(action="ignore"):  # of Conv1D, and of patterns for experts
        adapted = get_peft_model(model, config)
    wanted = adapted.get_nb_trainable_parameters()[0]
    # One tensor holds two of each expert's layers, and is adapted with twice the rank.
    share = 0.35 if model.config.model_type in EXPERTS_ADAPTED else 0
    assert adapter_parameters(Lora(rank=8), skeleton) == pytest.approx(wanted, rel=share)


def test_experts_that_peft_adapts_are_those_it_says() -> None:
    told = {
        name
        for name, pattern in transformers_weight_conversion._MODEL_TO_CONVERSION_PATTERN.items()
        if pattern in transformers_weight_conversion._MOE_FUSED_TARGETS and name.islower()
    }
    assert told == EXPERTS_ADAPTED


def test_trained_weights_of_chosen_modules() -> None:
    model, skeleton = built("llama")
    lora = Lora(
        rank=4, target_modules=["q_proj", "mlp.down_proj"], modules_to_save=["lm_head"], dora=True
    )
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "mlp.down_proj"],
        modules_to_save=["lm_head"], use_dora=True,
    )  # fmt: skip
    wanted = get_peft_model(model.to_empty(device="cpu"), config).get_nb_trainable_parameters()[0]
    assert adapter_parameters(lora, skeleton) == wanted


@pytest.mark.parametrize("family", sorted(PLAIN))
def test_plain_families_are_plain(family: str) -> None:
    """Each weight is asked for by its name and shape, so that none can be missing or cut."""
    _, skeleton = built(family)
    assert misfits(skeleton) == []
    for name in ("layers.1.self_attn.v_proj.weight", "layers.3.mlp.down_proj.weight"):
        full = next(held for held in skeleton.shapes if held.endswith(name))
        less = {held: shape for held, shape in skeleton.shapes.items() if held != full}
        assert misfits(_with(skeleton, less)) == [f"{full}: missing"]
        cut = {**skeleton.shapes, full: (1, 1)}
        assert misfits(_with(skeleton, cut))[0].startswith(f"{full}: (1, 1), by config.json (")


def _with(skeleton: Skeleton, shapes: dict[str, Any]) -> Skeleton:
    return Skeleton(skeleton.config, skeleton.causal_class, shapes, skeleton.code)


def test_an_output_that_is_no_tensor_of_its_own() -> None:
    _, skeleton = built("gpt2")
    assert "lm_head.weight" not in skeleton.shapes
    check_modules(Lora(modules_to_save=["lm_head"]), skeleton)
    assert skeleton.parameters_of(["lm_head"]) == 50257 * 768


@pytest.mark.parametrize(
    ("family", "name", "state"),
    [
        ("llama", "norm", "is a LlamaRMSNorm"),
        ("llama", "self_attn", "is a LlamaAttention"),
        ("gpt2", "ln_1", "is a LayerNorm"),
        ("mixtral", "experts", "is a MixtralExperts"),
        ("mixtral", "w1", "is no module of this model"),
        ("qwen3_moe", "gate", "is a Qwen3MoeTopKRouter"),
    ],
)
def test_what_takes_no_adapter_is_named(family: str, name: str, state: str) -> None:
    with pytest.raises(UserError, match=f"targetModules` '{name}' {state}; it must be one of"):
        check_modules(Lora(target_modules=[name]), built(family)[1])


def test_names_may_be_written_out_and_lack_the_models_prefix() -> None:
    _, skeleton = built("llama")
    bare = {name.removeprefix("model."): shape for name, shape in skeleton.shapes.items()}
    lora = Lora(target_modules=["model.layers.1.self_attn.q_proj"])
    check_modules(lora, _with(skeleton, bare))
    assert adapter_parameters(lora, _with(skeleton, bare)) == adapter_parameters(lora, skeleton) > 0
