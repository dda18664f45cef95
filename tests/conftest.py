"""Models of a few thousand random weights with their own tokenizers, made in the session: nothing is downloaded."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from workspace import Workspace, make_workspace, succeed

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

SENTENCES = [
    "What is the value of the digit 7 in 4712? The student says 70, but the answer is 700.",
    "Tom adds 247 and 138 and forgets to carry the ten. Does he get 375? Yes, he does.",
    "Is three quarters the same as 0.75? Yes. Is one third the same as 0.3? No.",
    "Which fraction is bigger, 2/3 or 3/5? Treats the numerator and the denominator as whole numbers.",
    "Work out 20% of 60. The student divides by 20 instead: No, that is not right.",
    "Solve the equation 3x + 5 = 20. Subtract 5 from both sides, then divide by 3. Yes, x = 5.",
    "The area of a rectangle is its length times its width. Adds the sides instead of multiplying.",
    "Round 4347 to the nearest hundred. Believes rounding always goes up. Is it right? No.",
    "Question: which misconception explains the wrong answer? Answer with Yes or No.",
    "Misconception: thinks that multiplying always makes a number bigger. Answer: Yes",
    "Misconception: ignores the negative sign when subtracting. Answer: No",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
HEADS = {  # class, settings of its config
    "bert-sequence": ("BertForSequenceClassification", {"num_labels": 3}),
    "bert-token": ("BertForTokenClassification", {"num_labels": 4}),
    "llama-sequence": ("LlamaForSequenceClassification", {"num_labels": 3}),
    "llama-without-padding": ("LlamaForSequenceClassification", {"num_labels": 3, "pad_token_id": None}),
    "llama-with-other-padding": ("LlamaForSequenceClassification", {"num_labels": 3, "pad_token_id": 5}),
}


def train_bpe() -> "PreTrainedTokenizerFast":
    """A byte-level BPE that takes any text and has " Yes", " No", "Yes" and "No" as one token each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*SENTENCES, *(["Yes No", "No Yes"] * 20)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )


def llama_config(tokenizer: "PreTrainedTokenizerFast", **changes: int) -> "LlamaConfig":
    """Weights of std 0.2, so that logits are far from all alike."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        initializer_range=0.2,
        **{
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            **changes,
        },
    )


def save_llama(folder: Path, **changes: int) -> Path:
    """A random causal LM with tokenizer, chat template and generation config; `changes` go into its config."""
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = train_bpe()
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(tokenizer, **changes)).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pico_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM of two layers; read only."""
    return save_llama(tmp_path_factory.mktemp("models") / "pico-llm")


@pytest.fixture(scope="session")
def pico_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder of two layers: Transformer, mean Pooling, Normalize; read only."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, model_max_length=128, **dict(zip(names, special, strict=True))
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    bare = tmp_path_factory.mktemp("models") / "pico-bert"
    torch.manual_seed(0)
    BertModel(config).save_pretrained(bare)
    tokenizer.save_pretrained(bare)
    transformer = Transformer(str(bare))
    folder = bare.with_name("pico-encoder")
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="session")
def make_llm() -> Callable[..., Path]:
    """make_llm(folder, **config changes) → folder, for tests that need another causal LM."""
    return save_llama


@pytest.fixture(scope="session")
def broken_llm(pico_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pico_llm whose last norm is NaN; read only."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models") / "broken-llm"
    shutil.copytree(pico_llm, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session", params=HEADS)
def pico_head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a head of `HEADS`; read only."""
    import torch
    import transformers

    name, changes = HEADS[request.param]
    base = request.getfixturevalue("pico_llm" if name.startswith("Llama") else "pico_encoder")
    folder = tmp_path_factory.mktemp("models") / request.param
    torch.manual_seed(0)
    getattr(transformers, name)(transformers.AutoConfig.from_pretrained(base, **changes)).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def with_lora() -> Callable[..., Any]:
    """with_lora(base, **config changes) → the base with an adapter that changes every linear matrix: B is not zero.

    Matrices are named without their layer, as PEFT writes all-linear down for models of three layers and more.
    """

    def attach(base: Path, **config: Any) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **config)
        names = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM"))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        return model

    return attach


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, pico_llm: Path, pico_encoder: Path) -> Workspace:
    """A repository of its own in which exp002_rerank--smoke is complete."""
    workspace = make_workspace(tmp_path_factory.mktemp("workspace"), pico_llm, pico_encoder)
    succeed(workspace.train("exp002_rerank", "--smoke"))
    return workspace
