"""Work: the tokens that the engine runs forward, how many of them are padding, and what that costs a model to train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel


@dataclass
class Work:
    """Sums over micro-batches. What is recomputed in the backward counts once, as does a prefix that rows share.

    Attributes:
        num_tokens: Tokens that ran, without padding.
        num_padding: Padding that ran beside them.
        num_attended: For each of those tokens the tokens that its row has, summed: the squares of the rows' lengths.
    """

    num_tokens: int = 0
    num_padding: int = 0
    num_attended: int = 0

    def add(self, lengths: Sequence[int], *, behind: Sequence[int] | None = None) -> None:
        """Count a micro-batch.

        Args:
            lengths: Tokens of each row; the longest one is what all are padded to.
            behind: Tokens of each row's shared prefix, which do not run here but are attended to.

        >>> work = Work()
        >>> work.add([4, 3, 1])
        >>> work
        Work(num_tokens=8, num_padding=4, num_attended=26)
        """
        behind = behind or [0] * len(lengths)
        self.num_tokens += sum(lengths)
        self.num_padding += len(lengths) * max(lengths) - sum(lengths)
        self.num_attended += sum(ran * (before + ran) for ran, before in zip(lengths, behind, strict=True))


def training_flops(model: PreTrainedModel, work: Work) -> float:
    """Floating-point operations of one forward and backward of the work, padding and recomputation left out.

    The usual count, of `PaLM <https://arxiv.org/abs/2204.02311>`_, appendix B: ``6 * tokens * parameters`` outside the
    embeddings, and ``12 * layers * width * attended`` for attention, also where a causal mask or a window leaves part
    of it out. A frozen parameter counts 4 instead of 6: it has no gradient of its own.

    Args:
        model: Whose parameters and configuration count.
        work: What has run.
    """
    config = model.config.get_text_config()
    num_heads = getattr(config, "num_attention_heads", 0)  # Mamba has none
    width = num_heads and num_heads * (getattr(config, "head_dim", None) or config.hidden_size // num_heads)
    num_parameters = model.num_parameters(exclude_embeddings=True)
    num_trainable = model.num_parameters(only_trainable=True, exclude_embeddings=True)
    of_parameters = work.num_tokens * (4 * num_parameters + 2 * num_trainable)
    return float(of_parameters + 12 * config.num_hidden_layers * width * work.num_attended)
