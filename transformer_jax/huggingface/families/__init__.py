"""One module a family of models: its table of configuration fields and tensors."""

from transformer_jax.huggingface.families.bart import BART, MARIAN
from transformer_jax.huggingface.families.bert import BERT, ROBERTA
from transformer_jax.huggingface.families.gpt2 import GPT2
from transformer_jax.huggingface.families.llama import LLAMA
from transformer_jax.huggingface.families.t5 import T5

FAMILIES = {family.model_type: family for family in (GPT2, LLAMA, BERT, ROBERTA, T5, BART, MARIAN)}
