"""Worker of benchmarks/train.py: the PyTorch twin of our plain GPT, in its own environment (`make bench-env`).

Uses the fastest PyTorch for a CPU: one product for queries, keys and values, fused attention, fused AdamW. It reads
one JSON order per line and answers with one JSON line.
"""

import json
import resource
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.query_key_value(self.attention_norm(x)).split(width, dim=2)
        q, k, v = (y.view(batch, length, self.heads, -1).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.feed_forward_norm(x))))


class GPT(nn.Module):
    def __init__(self, vocab, layers, width, heads, context):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.position_embed = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens, targets):
        x = self.embed(tokens) + self.position_embed.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.embed.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def load(model: GPT, path: str) -> None:
    """Load our weights by our names: kernels [in, ..., out] become matrices [out, in]."""
    ours = {name: torch.tensor(array) for name, array in np.load(path).items()}

    def matrix(name, num_in=1):
        kernel = ours[f"{name}/kernel"]
        return kernel.reshape(kernel.shape[:num_in].numel(), -1).T

    def norm(module, name):
        module.weight.copy_(ours[f"{name}/scale"])
        module.bias.copy_(ours[f"{name}/bias"])

    with torch.no_grad():
        model.embed.weight.copy_(ours["embed/tokens/embedding"])
        model.position_embed.weight.copy_(ours["embed/positions/embedding"])
        norm(model.norm, "stack/norm")
        for i, block in enumerate(model.blocks):
            path = f"stack/block_{i}"
            parts = [matrix(f"{path}/attention/{name}") for name in ("query", "key", "value")]
            block.query_key_value.weight.copy_(torch.cat(parts))
            block.out.weight.copy_(matrix(f"{path}/attention/out", 2))
            block.up.weight.copy_(matrix(f"{path}/feed_forward/up"))
            block.down.weight.copy_(matrix(f"{path}/feed_forward/down"))
            norm(block.attention_norm, f"{path}/attention_norm")
            norm(block.feed_forward_norm, f"{path}/feed_forward_norm")


def matmul_gflops(rows: int, width: int) -> float:
    """Rate of a feed-forward product and its two gradients, in billions of operations per second."""
    x = torch.randn(rows, width)
    w = torch.randn(width, 4 * width)
    seconds = []
    for _ in range(11):
        began = time.perf_counter()
        y = x @ w
        y @ w.T
        x.T @ y
        seconds.append(time.perf_counter() - began)
    return 3 * 2 * rows * width * 4 * width / sorted(seconds)[5] / 1e9


def main():
    setup = json.loads(sys.stdin.readline())
    torch.set_num_threads(setup["threads"])
    shape = setup["shape"]
    model = GPT(setup["vocab_size"], shape["num_layers"], shape["d_model"], shape["num_heads"], shape["max_len"])
    load(model, setup["weights"])
    batches = [torch.tensor(batch, dtype=torch.long) for batch in np.load(setup["batches"])]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=setup["lr"], betas=(0.9, 0.95), eps=1e-8, fused=True)
    done = 0

    def step():
        nonlocal done
        batch = batches[done % len(batches)]
        loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        return loss.item()

    def answer(value):
        print(json.dumps(value), flush=True)

    answer({"python": sys.version.split()[0], "torch": torch.__version__})
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "losses":
            answer([step() for _ in range(order["steps"])])
        elif order["do"] == "time":
            began = time.perf_counter()
            for _ in range(order["steps"]):
                step()
            answer((time.perf_counter() - began) / order["steps"])
        elif order["do"] == "matmul":
            answer(matmul_gflops(order["rows"], shape["d_model"]))
        elif order["do"] == "memory":
            answer(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
