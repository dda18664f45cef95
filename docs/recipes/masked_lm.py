"""An encoder reads the competition's texts on (masked language modelling), and the loss on texts that it did not read.

MiniLM's language-model head starts at random; DeBERTa and BERT bring theirs. Leaves output/recipes/reads_on/.
"""

from pathlib import Path

from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.tasks.masked import MaskedSettings, MaskedTask, make_chunks, mask_chunks, masked_log_loss
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job, fine_tune

base, folder = Path("input/models/all-MiniLM-L6-v2"), Path("output/recipes/reads_on")
texts = load_competition(CompetitionSettings("demo-misconceptions")).table("train")["question"].to_list()
tokenizer, settings = load_tokenizer(base), MaskedSettings(max_tokens=64)
chunks = make_chunks(tokenizer, texts, settings.max_tokens)
examples = mask_chunks(tokenizer, chunks[20:], settings, seed=0)
training = TrainingSettings(tokens=4000, batch=16, learning_rate=5e-5)  # null tokens: all
fine_tune(MaskedTask(), examples, Job(base, folder, LoraSettings("full"), training, seed=0))

held_out = mask_chunks(tokenizer, chunks[:20], settings, seed=1)
before, after = (masked_log_loss(model, held_out) for model in (base, folder))
print(f"log loss of masked tokens in texts that were not read: {before:.3f} before, {after:.3f} after")
