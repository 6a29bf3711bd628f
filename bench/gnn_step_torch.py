"""The other side of bench/gnn_step.py: the same model around layers of PyG.

Reads what bench/gnn_step_star.py wrote. Its interpreter needs torch and torch-geometric, not
star_jax. A layer gets the edges and nodes that reach the seeds through it, hop by hop as PyG's
`trim_to_layer` has it, and its last part runs over the rows that are read later alone; the
convolutions themselves are PyG's own:

  gat: `GATConv` per relation in `HeteroConv`, summed.
  bipartite: the same `GATConv`s, called with the receivers that are read later in place of all
    nodes, which `HeteroConv` cannot do: what a user would gain by writing the layer anew.
  hgt: `HGTConv`, whose softmax is over the edges of all relations, as ours is.
"""

import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]
from torch.utils.flop_counter import FlopCounterMode  # pyright: ignore[reportMissingImports]
from torch_geometric.nn import GATConv, HeteroConv, HGTConv  # pyright: ignore[reportMissingImports]

from bench.turns import Answer, take_turns

Rows = dict[str, Any]  # By node type: one row of states per node.
Edges = dict[tuple[str, ...], Any]  # By relation: rows of senders over rows of receivers.


class Subgraph(NamedTuple):
    """One file of a subgraph, its arrays as tensors."""

    node: Rows
    seen: Rows
    text_row: Rows
    texts: Rows  # Vectors.
    rows: dict[str, list[int]]  # Of every hop.
    edges: Edges
    sizes: dict[tuple[str, ...], list[int]]  # Edges of every hop.


class Features(nn.Module):
    """First-layer features of one node type: slices of texts and identities, and a bias."""

    def __init__(self, text_size: int, num_identities: int, dim: int) -> None:
        super().__init__()
        self.text_size, self.bias = text_size, nn.Parameter(torch.zeros(dim))
        self.text = nn.Linear(text_size, dim, bias=False) if text_size else None
        self.missing = nn.Parameter(torch.zeros(dim))
        self.identity = nn.Embedding(num_identities, dim) if num_identities else None
        self.unseen = nn.Parameter(torch.zeros(dim))

    def forward(self, subgraph: Subgraph, name: str) -> Tensor:
        """One row per node."""
        hidden = self.bias.expand(len(subgraph.node[name]), -1)
        if self.text is not None:
            row = subgraph.text_row[name]
            projected = self.text(subgraph.texts[name] * math.sqrt(self.text_size))
            hidden = hidden + torch.where((row >= 0)[:, None], projected[row], self.missing)
        if self.identity is not None:
            seen = subgraph.seen[name][:, None]
            hidden = hidden + torch.where(seen, self.identity(subgraph.node[name]), self.unseen)
        return hidden


class Layer(nn.Module):
    """Messages by PyG's layers, then h' = h + W_o act(U [h; m]) as ours."""

    def __init__(self, kind: str, sizes: Answer, receiving: list[str]) -> None:
        super().__init__()
        dim, heads, width = sizes["dim"], sizes["heads"], sizes["multiplier"] * sizes["dim"]
        self.kind, self.receiving = kind, receiving
        self.keys = [
            parts for key in sizes["keys"] if (parts := tuple(key.split("__")))[2] in receiving
        ]
        if kind == "hgt":
            self.conv = HGTConv(dim, dim, (sorted(sizes["text_size"]), self.keys), heads)
        else:
            self.conv = HeteroConv(
                {
                    key: GATConv((dim, dim), dim // heads, heads, add_self_loops=False)
                    for key in self.keys
                },
                aggr="sum",
            )
        self.first = nn.ModuleDict({name: nn.Linear(2 * dim, width) for name in receiving})
        self.second = nn.ModuleDict({name: nn.Linear(width, dim) for name in receiving})

    def forward(self, hidden: Rows, edges: Edges, counts: dict[str, int]) -> Rows:
        """New rows of the nodes that are read later; `counts` of every type."""
        edges = {key: edges[key] for key in self.keys if key in edges}
        if self.kind == "bipartite":
            messages: Rows = {}
            for key, pairs in edges.items():
                receivers = hidden[key[2]][: counts[key[2]]]
                found = self.conv.convs[key]((hidden[key[0]], receivers), pairs)
                messages[key[2]] = messages[key[2]] + found if key[2] in messages else found
        else:
            messages = self.conv(hidden, edges)
        return {
            name: self._combine(name, hidden[name][: counts[name]], messages.get(name))
            for name in self.receiving
            if counts.get(name)
        }

    def _combine(self, name: str, own: Tensor, message: Tensor | None) -> Tensor:
        message = torch.zeros_like(own) if message is None else message[: len(own)]
        units = functional.leaky_relu(self.first[name](torch.cat([own, message], 1)), 0.2)
        return own + self.second[name](units)


class Encoder(nn.Module):
    """The layers of one role."""

    def __init__(self, kind: str, sizes: Answer, role: str) -> None:
        super().__init__()
        self.end = sizes["ends"][role]
        self.layers = nn.ModuleList(
            Layer(kind, sizes, receiving) for receiving in sizes["receiving"][role]
        )
        self.norm = nn.BatchNorm1d(sizes["dim"], eps=1e-3)

    def forward(self, subgraph: Subgraph, hidden: Rows) -> Tensor:
        """One row per seed."""
        for number, layer in enumerate(self.layers):
            depth = len(self.layers) - number
            counts = {name: sum(hops[:depth]) for name, hops in subgraph.rows.items()}
            edges = {
                key: pairs[:, : sum(subgraph.sizes[key][:depth])]
                for key, pairs in subgraph.edges.items()
            }
            hidden = layer(hidden, edges, counts)
        return self.norm(hidden[self.end])


class LinkModel(nn.Module):
    """Pairs to logits."""

    def __init__(self, kind: str, sizes: Answer) -> None:
        super().__init__()
        dim, rate = sizes["dim"], sizes["dropout"]
        self.features = nn.ModuleDict(
            {
                name: Features(size, sizes["num_identities"][name], dim)
                for name, size in sizes["text_size"].items()
            }
        )
        self.encoders = nn.ModuleDict({role: Encoder(kind, sizes, role) for role in sizes["ends"]})
        self.product = nn.Parameter(torch.full((dim,), 1.0 / dim))
        self.decoder = nn.Sequential(
            nn.Dropout(rate / 3),
            nn.Linear(3 * dim, sizes["hidden_size"]),
            nn.LeakyReLU(0.2),
            nn.Dropout(rate),
            nn.Linear(sizes["hidden_size"], 1),
        )

    def embed(self, subgraph: Subgraph, role: str) -> Tensor:
        """One row per seed."""
        hidden = {name: self.features[name](subgraph, name) for name in subgraph.node}
        return self.encoders[role](subgraph, hidden)

    def forward(self, batch: "Batch") -> Tensor:
        """One logit per pair."""
        u = self.embed(batch.sender, "sender")[batch.sender_row]
        v = self.embed(batch.receiver, "receiver")[batch.receiver_row]
        joined = torch.cat([u, v, u * v], dim=1)
        return (u * v) @ self.product + self.decoder(joined)[:, 0]


class Batch(NamedTuple):
    """One file of a step."""

    sender: Subgraph
    receiver: Subgraph
    sender_row: Any
    receiver_row: Any
    label: Any


class Torch:
    """The model under training, and the functions of a turn."""

    def __init__(self, folder: Path, kind: str, num_steps: int) -> None:
        self._sizes = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self._folder, self._num_steps = folder, num_steps
        self._vectors = {
            name: torch.from_numpy(np.load(folder / f"vectors_{name}.npy"))
            for name, size in self._sizes["text_size"].items()
            if size
        }
        self._batches = [self._batch(path) for path in _numbered(folder, "step")]
        torch.manual_seed(0)
        self._model = LinkModel(kind, self._sizes)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            lr=self._sizes["rate"],
            weight_decay=self._sizes["weight_decay"],
            fused=True,
        )

    def about(self) -> Answer:
        """Counts edges and the operations of matrix products; everything runs once."""
        with FlopCounterMode(display=False) as step_flops:
            first = self._update(self._batches[0])
        with FlopCounterMode(display=False) as sampled_flops:
            self.sampled()
        with FlopCounterMode(display=False) as export_flops:
            self.export()
        edges = [e for b in self._batches for s in (b.sender, b.receiver) for e in s.edges.values()]
        return {
            "step_gflop": step_flops.get_total_flops() / 1e9,
            "sampled_gflop": sampled_flops.get_total_flops() / 1e9,
            "export_gflop": export_flops.get_total_flops() / 1e9,
            "loss": first["loss"],
            "edges": sum(each.shape[1] for each in edges),
            "versions": f"torch {torch.__version__}, torch-geometric {_version()}",
        }

    def step(self) -> Answer:
        """Some updates; seconds of every phase, and losses."""
        found: dict[str, list[float]] = {
            name: [] for name in ("forward", "backward", "update", "loss")
        }
        for number in range(self._num_steps):
            for name, value in self._update(self._batches[number % len(self._batches)]).items():
                found[name].append(value)
        return found

    def epoch(self) -> Answer:
        """All batches once; they are in memory already."""
        begun = time.monotonic()
        for batch in self._batches:
            self._update(batch)
        return {"seconds": time.monotonic() - begun}

    def sampled(self) -> Answer:
        """Vectors of all nodes of a type, each from a sample of its own, batch by batch."""
        return self._embedded(_numbered(self._folder, "nodes"))

    def export(self) -> Answer:
        """The same in one subgraph, which has every node once and so costs what layers do."""
        return self._embedded([self._folder / "whole.npz"])

    def _embedded(self, paths: Iterable[Path]) -> Answer:
        """Drawing and reading neighbours is not counted."""
        self._model.eval()
        seconds, size = 0.0, 0
        for path in paths:
            subgraph = self._subgraph(np.load(path), "")
            begun = time.monotonic()
            with torch.inference_mode():
                vectors = self._model.embed(subgraph, self._sizes["exported_role"])
            seconds += time.monotonic() - begun
            assert bool(torch.isfinite(vectors).all())
            size += len(vectors)
        return {"seconds": seconds, "size": size}

    def _update(self, batch: Batch) -> dict[str, float]:
        self._model.train()
        begun = time.monotonic()
        logits = self._model(batch)
        loss = functional.binary_cross_entropy_with_logits(logits, batch.label)
        forward = time.monotonic()
        self._optimizer.zero_grad()
        loss.backward()
        backward = time.monotonic()
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._sizes["clip_norm"])
        self._optimizer.step()
        done = time.monotonic()
        assert math.isfinite(norm.item()), f"loss {loss.item()}"
        return {
            "forward": forward - begun,
            "backward": backward - forward,
            "update": done - backward,
            "loss": loss.item(),
        }

    def _batch(self, path: Path) -> Batch:
        arrays = np.load(path)
        return Batch(
            self._subgraph(arrays, "sender/"),
            self._subgraph(arrays, "receiver/"),
            torch.from_numpy(arrays["sender_row"]).long(),
            torch.from_numpy(arrays["receiver_row"]).long(),
            torch.from_numpy(arrays["label"]),
        )

    def _subgraph(self, arrays: Any, prefix: str) -> Subgraph:
        def part(name: str, kind: str) -> Any:
            return arrays[f"{prefix}{name}/{kind}"]

        def tensors(kind: str) -> Rows:
            return {name: torch.from_numpy(part(name, kind)) for name in types}

        names = [key.removeprefix(prefix) for key in arrays if key.startswith(prefix)]
        types = [name.removesuffix("/node") for name in names if name.endswith("/node")]
        keys = [name.removesuffix("/edges") for name in names if name.endswith("/edges")]
        texts = tensors("texts")
        return Subgraph(
            node={name: node.long() for name, node in tensors("node").items()},
            seen=tensors("seen"),
            text_row={name: row.long() for name, row in tensors("text_row").items()},
            texts={n: self._vectors[n][texts[n]] for n in types if n in self._vectors},
            rows={name: part(name, "rows").tolist() for name in types},
            edges={tuple(k.split("__")): torch.from_numpy(part(k, "edges")) for k in keys},
            sizes={tuple(k.split("__")): part(k, "sizes").tolist() for k in keys},
        )


def _numbered(folder: Path, name: str) -> Iterator[Path]:
    return iter(sorted(folder.glob(f"{name}_*.npz"), key=lambda path: int(path.stem.split("_")[1])))


def _version() -> str:
    import torch_geometric  # pyright: ignore[reportMissingImports]

    return torch_geometric.__version__


def main() -> None:
    """Takes turns, as bench/gnn_step.py asks for them."""
    folder, kind, num_threads, num_steps = sys.argv[1:]
    torch.set_num_threads(int(num_threads))
    warnings.filterwarnings("ignore", message="There exist node types")  # None is read later.
    side = Torch(Path(folder), kind, int(num_steps))
    functions: dict[str, Callable[[], Answer]] = {
        "about": side.about,
        "step": side.step,
        "epoch": side.epoch,
        "sampled": side.sampled,
        "export": side.export,
    }
    take_turns(functions)


if __name__ == "__main__":
    main()
