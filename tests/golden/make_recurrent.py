"""Make recurrent.npz: what PyTorch's nn.LSTM and nn.GRU compute on random weights, for tests that need no PyTorch.

Run by hand, in an environment of its own, when the golden arrays must change:

    python -m venv golden-venv
    golden-venv/bin/pip install torch==2.13.0 numpy==2.4.6
    golden-venv/bin/python tests/golden/make_recurrent.py

The file in the repository was made with these versions on the CPU, computed in float64 and written in float32.

Arrays; 5 texts of at most 9 tokens, vocabulary 20, embeddings 6 wide, 2 layers of both directions, hidden 5 each:

- `tokens` int32 [5, 9], `lengths` int32 [5]; beyond its length a text has zeros. Each is read by itself.
- `weights` [5, 9, 10]: the loss of either network is the sum of its outputs times these.
- for KIND in lstm and gru: `KIND/weights/NAME` and `KIND/grads/NAME`, each parameter under PyTorch's name, with
  `embedding.weight` for the words, and the gradient of the loss for it; `KIND/hidden_states` [2, 5, 9, 10], the outputs
  of both layers, zeros beyond the texts; `KIND/last` [5, 10], the second layer's last states, forward and backward.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

SEED = 19971115
LENGTHS = (9, 4, 1, 6, 3)
VOCABULARY, EMBEDDING, HIDDEN, LAYERS = 20, 6, 5, 2


class Reader(torch.nn.Module):
    """Word embeddings, and a network on them."""

    def __init__(self, kind: type[torch.nn.RNNBase]):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, EMBEDDING)
        self.network = kind(EMBEDDING, HIDDEN, LAYERS, bidirectional=True, batch_first=True)
        for parameter in self.network.parameters():  # large enough that gates open and close
            torch.nn.init.normal_(parameter, std=0.6)
        self.double()

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        output, last = self.network(packed)
        hidden, _ = pad_packed_sequence(output, batch_first=True)
        states = last[0] if isinstance(last, tuple) else last  # an LSTM gives its memory as well
        return hidden, torch.cat([states[-2], states[-1]], dim=-1)

    def first_layer(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The outputs of the first layer alone, by a network that has no other."""
        one = type(self.network)(EMBEDDING, HIDDEN, 1, bidirectional=True, batch_first=True).double()
        one.load_state_dict({name: w for name, w in self.network.state_dict().items() if "_l0" in name})
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(one(packed)[0], batch_first=True)[0]


def main() -> None:
    torch.manual_seed(SEED)
    draw = np.random.default_rng(SEED)
    tokens = np.zeros((len(LENGTHS), max(LENGTHS)), np.int32)
    for row, length in enumerate(LENGTHS):
        tokens[row, :length] = draw.integers(1, VOCABULARY, length)
    weights = draw.normal(size=(*tokens.shape, 2 * HIDDEN)).astype(np.float32)
    arrays = {"tokens": tokens, "lengths": np.array(LENGTHS, np.int32), "weights": weights}

    ids, lengths = torch.from_numpy(tokens).long(), torch.tensor(LENGTHS)
    for kind in (torch.nn.LSTM, torch.nn.GRU):
        name = kind.__name__.lower()
        reader = Reader(kind)
        hidden, last = reader(ids, lengths)
        (hidden * torch.from_numpy(weights)).sum().backward()
        both = torch.stack([reader.first_layer(ids, lengths), hidden])
        arrays |= {f"{name}/hidden_states": both.detach().numpy(), f"{name}/last": last.detach().numpy()}
        for parameter_name, parameter in reader.named_parameters():
            short = parameter_name.removeprefix("network.")
            arrays[f"{name}/weights/{short}"] = parameter.detach().numpy()
            arrays[f"{name}/grads/{short}"] = parameter.grad.numpy()

    path = Path(__file__).with_name("recurrent.npz")
    np.savez_compressed(path, **{k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()})
    print(f"torch {torch.__version__} · numpy {np.__version__}")
    print(f"{path.name}: {path.stat().st_size:,} bytes · {len(arrays)} arrays")


if __name__ == "__main__":
    main()
