"""Worker of benchmarks/accelerator_training.py: the reference library's GPT-2 under torch.compile.

float32 weights under bfloat16 autocast, fused attention, fused AdamW: as PyTorch trains it fast. Random weights, saved
for ours to start from. It reads one JSON order per line and answers with one JSON line.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel


def make_model(shape: dict, device: str) -> GPT2LMHeadModel:
    """GPT-2 of the shape of our configuration, without dropout."""
    config = GPT2Config(
        vocab_size=shape["vocab_size"],
        n_positions=shape["max_len"],
        n_embd=shape["d_model"],
        n_layer=shape["num_layers"],
        n_head=shape["num_heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).to(device).train()


class Rival:
    """The model, its optimizer, and the training step."""

    def __init__(self, setup: dict):
        self.device = setup["device"]
        torch.set_float32_matmul_precision("high")
        self.model = make_model(setup["model"], self.device)
        self.model.save_pretrained(setup["weights"])
        self.first = {name: x.clone() for name, x in self.model.state_dict().items()}
        # The compiler of loops needs a C++ compiler on a CPU; there the graph is captured, and run as it is.
        backend = "inductor" if self.device == "cuda" else "aot_eager"
        self.compiled_loss = torch.compile(self.loss, dynamic=False, backend=backend)
        self.lr = setup["lr"]
        self.restart()

    def restart(self) -> None:
        """The first weights, and a new optimizer."""
        self.model.load_state_dict(self.first)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def loss(self, tokens):
        with torch.autocast(self.device, dtype=torch.bfloat16):
            logits = self.model(input_ids=tokens[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    def step(self, tokens, loss_of, rows: int = 0) -> float:
        """One optimizer step; with `rows`, in pieces of so many rows. Returns the mean loss."""
        total = 0.0
        for piece in tokens.split(rows or len(tokens)):
            loss = loss_of(piece) * (len(piece) / len(tokens))
            loss.backward()
            total = total + loss.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def has_causal_attention(self, tokens) -> bool:
        """True if fused attention gets a flag, not a mask, which would be slower."""
        masks = []
        original = F.scaled_dot_product_attention

        def record(*args, **kwargs):
            masks.append(kwargs.get("attn_mask"))
            return original(*args, **kwargs)

        F.scaled_dot_product_attention = record
        with torch.no_grad():
            self.loss(tokens)
        F.scaled_dot_product_attention = original
        return bool(masks) and all(mask is None for mask in masks)

    def seconds(self, tokens, at_least: float, least_steps: int = 2) -> float:
        """Seconds of a step: enough steps to fill `at_least` seconds, after two that are not timed."""
        for _ in range(2):
            float(self.step(tokens, self.compiled_loss))
        began = time.perf_counter()
        steps = 0
        while steps < least_steps or time.perf_counter() - began < at_least:
            for _ in range(least_steps):
                loss = self.step(tokens, self.compiled_loss)
            float(loss)  # waits
            steps += least_steps
        return (time.perf_counter() - began) / steps


def main():
    setup = json.loads(sys.stdin.readline())
    rival = Rival(setup)
    vocab_size, length = setup["model"]["vocab_size"], setup["model"]["max_len"] + 1
    tokens = None

    def answer(value):
        print(json.dumps(value), flush=True)

    def random_tokens(batch):
        return torch.randint(vocab_size, (batch, length), device=rival.device)

    answer({"torch": torch.__version__, "transformers": transformers.__version__})
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "try":
            began = time.perf_counter()
            tokens = None
            rival.optimizer.zero_grad(set_to_none=True)
            try:
                tokens = random_tokens(order["batch"])
                float(rival.step(tokens, rival.compiled_loss))
                compile_seconds = time.perf_counter() - began
                seconds = rival.seconds(tokens, order["seconds"])
            except torch.OutOfMemoryError as error:
                answer({"out_of_memory": str(error)[:200]})
                continue
            finally:
                if rival.device == "cuda":
                    peak = torch.cuda.max_memory_allocated()
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
            figures = {
                "tokens_per_second": round(tokens[:, 1:].numel() / seconds),
                "ms_per_step": round(seconds * 1e3, 2),
                "compile_seconds": round(compile_seconds, 1),
            }
            if rival.device == "cuda":
                figures |= {"peak_bytes": peak, "device_bytes": torch.cuda.mem_get_info()[1]}
            answer(figures)
        elif order["do"] == "losses":  # without the compiler, in pieces of rows, from the first weights
            rival.restart()
            batches = [
                torch.tensor(batch, dtype=torch.long, device=rival.device) for batch in np.load(setup["batches"])
            ]
            has_causal_attention = rival.has_causal_attention(batches[0][:1])
            losses = [float(rival.step(batch, rival.loss, rows=8)) for batch in batches[: order["steps"]]]
            answer({"losses": losses, "has_causal_attention": has_causal_attention})
        elif order["do"] == "time":
            seconds = rival.seconds(random_tokens(order["batch"]), order["seconds"])
            if rival.device == "cuda":
                torch.cuda.empty_cache()  # ours is next
            answer(seconds)


if __name__ == "__main__":
    main()
