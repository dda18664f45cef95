"""Models of a few thousand random weights with their tokenizers, for tests and benchmarks: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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


def train_bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE that takes any text; Yes, No, " Yes", " No", " A", " B", " C", " tie" are a token each."""
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
    raw.train_from_iterator([*SENTENCES, *(["Yes No", "No Yes", "A B A C tie"] * 20)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )


def llama_config(tokenizer: PreTrainedTokenizerFast, **changes: int) -> LlamaConfig:
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


def save_encoder(folder: Path) -> Path:
    """A random sentence encoder of two layers: Transformer, mean Pooling, Normalize; its bare model lies beside it."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
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
    bare = folder.with_name("pico-bert")
    torch.manual_seed(0)
    BertModel(config).save_pretrained(bare)
    tokenizer.save_pretrained(bare)
    transformer = Transformer(str(bare))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder
