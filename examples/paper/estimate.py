"""Estimate: GPU hours and memory of the recipe by model size, from shapes and assumptions that stand here.

python estimate.py                       # the table of README.md
python estimate.py --groups 100000 --tokens_per_pair 150 --mfu 0.25

Nothing here was measured. Operations are counted as PaLM does (https://arxiv.org/abs/2204.02311, appendix B), for the
parameters outside the embeddings: 2 a token forward, 4 backward; of frozen parameters 2 backward, since they have no
gradient of their own; 2 more where activations are computed again. Attention itself is left out: at the rows' lengths
it adds less than 3 %.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

RANK = 16  # of `lora: true`
# Bytes of a parameter: weight, gradient and two moments of AdamW in float32; the copy in bfloat16 that autocast keeps.
WEIGHT, GRADIENT, MOMENTS, COPY = 4, 4, 8, 2


@dataclass(frozen=True)
class Transformer:
    """A decoder with grouped queries and a gated MLP, as Qwen2.5 is, with a score head of one logit."""

    width: int
    num_layers: int
    key_width: int  # of all key heads together
    mlp_width: int
    vocabulary: int

    @property
    def linear(self) -> list[tuple[int, int, int]]:
        """Of a layer: inputs, outputs and biases of each linear map."""
        w, k, m = self.width, self.key_width, self.mlp_width
        return [(w, w, w), (w, k, k), (w, k, k), (w, w, 0), (w, m, 0), (w, m, 0), (m, w, 0)]

    @property
    def body(self) -> int:
        """Parameters outside the embeddings and the head."""
        of_layer = sum(inputs * outputs + biases for inputs, outputs, biases in self.linear) + 2 * self.width
        return self.num_layers * of_layer + self.width

    @property
    def adapter(self) -> int:
        """Parameters of LoRA on every linear map of the layers."""
        return self.num_layers * RANK * sum(inputs + outputs for inputs, outputs, _ in self.linear)

    @property
    def all(self) -> int:
        """Body, embeddings and head."""
        return self.body + self.vocabulary * self.width + self.width

    @property
    def bytes_per_token(self) -> float:
        """Activations that a backward needs, in 16 bits, attention's matrix not kept.

        34 bytes for each layer and unit of width (Korthikanti et al., 2022, https://arxiv.org/abs/2205.05198).
        """
        return 34 * self.width * self.num_layers


@dataclass(frozen=True)
class Mamba2:
    """Mamba-2, with a score head of one logit; its expansion is 2, its heads have 64, its convolution 4 places."""

    width: int
    num_layers: int
    state: int
    vocabulary: int

    @property
    def linear(self) -> list[tuple[int, int]]:
        """Of a layer: inputs and outputs of the linear maps that LoRA can adapt (not the last one)."""
        inner = 2 * self.width
        return [(self.width, 2 * inner + 2 * self.state + inner // 64)]

    @property
    def body(self) -> int:
        """Parameters outside the embeddings and the head."""
        inner = 2 * self.width
        convolved, heads = inner + 2 * self.state, inner // 64
        of_linear = sum(inputs * outputs for inputs, outputs in self.linear) + inner * self.width
        return self.num_layers * (of_linear + 5 * convolved + 3 * heads + inner + self.width) + self.width

    @property
    def adapter(self) -> int:
        """Parameters of LoRA on what it can adapt."""
        return self.num_layers * RANK * sum(inputs + outputs for inputs, outputs in self.linear)

    @property
    def all(self) -> int:
        """Body, embeddings and head."""
        return self.body + self.vocabulary * self.width + self.width

    @property
    def bytes_per_token(self) -> float:
        """As of a Transformer of this width and half as many layers: a guess, and only with its kernels."""
        return 34 * self.width * self.num_layers / 2


SHAPES: dict[str, Transformer | Mamba2] = {
    "qwen2.5-0.5b": Transformer(896, 24, 128, 4864, 151936),
    "qwen2.5-1.5b": Transformer(1536, 28, 256, 8960, 151936),
    "qwen2.5-3b": Transformer(2048, 36, 256, 11008, 151936),
    "qwen2.5-7b": Transformer(3584, 28, 512, 18944, 152064),
    "mamba2-1.3b": Mamba2(2048, 48, 128, 50288),
    "mamba2-2.7b": Mamba2(2560, 64, 128, 50288),
}
TEACHER = "qwen2.5-7b"


@dataclass(frozen=True)
class Assumptions:
    """What the estimate assumes; each is an argument of the command line."""

    groups: int = 400_000  # queries of MS MARCO passage with hard negatives
    passages: int = 8  # recipe.yaml: one positive, seven negatives
    tokens_per_pair: int = 100  # query and passage of MS MARCO
    judged_queries: int = 40_311  # 6,980 of dev, 97 of TREC DL, 33,234 of the 13 sets of BEIR
    depth: int = 100
    tokens_per_judged_pair: int = 200  # BEIR has abstracts and articles
    micro_batch: int = 4096  # tokens whose activations are there at a time, the others being computed again
    gpus: int = 8
    peak: float = 989e12  # operations a second of an H100 SXM in bfloat16, dense, as its maker gives it
    mfu: float = 0.35  # share of the peak that is reached

    @property
    def train_tokens(self) -> int:
        return self.groups * self.passages * self.tokens_per_pair

    @property
    def judge_tokens(self) -> int:
        return self.judged_queries * self.depth * self.tokens_per_judged_pair

    def hours(self, operations: float) -> float:
        """On one GPU."""
        return operations / (self.peak * self.mfu) / 3600


def hours(shape: Transformer | Mamba2, assumed: Assumptions) -> dict[str, float]:
    """GPU hours of training all weights, of training LoRA, of writing teacher scores, of judging."""
    body, again = shape.body, 2 * shape.body  # activations are computed again in the backward
    return {
        "all weights": assumed.hours(assumed.train_tokens * (6 * body + again)),
        "LoRA": assumed.hours(assumed.train_tokens * (4 * body + 6 * shape.adapter + again)),
        "teaching": assumed.hours(assumed.train_tokens * 2 * body),
        "judging": assumed.hours(assumed.judge_tokens * 2 * body),
    }


def gigabytes(shape: Transformer | Mamba2, assumed: Assumptions) -> dict[str, float]:
    """Memory of each GPU, weights and optimizer and the activations of a micro-batch; without what libraries take."""
    kept = shape.bytes_per_token * assumed.micro_batch
    everything = WEIGHT + GRADIENT + MOMENTS
    found = {
        "one GPU": (everything + COPY) * shape.all,
        "ZeRO-2": (COPY + (COPY + WEIGHT + MOMENTS) / assumed.gpus) * shape.all,  # weights and gradients of 16 bits
        "FSDP": everything * shape.all / assumed.gpus,
        "LoRA": WEIGHT * shape.all + (everything + COPY) * shape.adapter,
    }
    return {name: (size + kept) / 1e9 for name, size in found.items()}


def whole_recipe(assumed: Assumptions) -> float:
    """GPU hours of recipe.yaml: each model by both methods, the 7B with LoRA, its scores, and judging all."""
    found = {name: hours(shape, assumed) for name, shape in SHAPES.items()}
    trained = {name: of["LoRA" if name == TEACHER else "all weights"] for name, of in found.items()}
    return found[TEACHER]["teaching"] + sum(2 * (trained[name] + found[name]["judging"]) for name in found)


def table(assumed: Assumptions) -> str:
    """GPU hours and memory by model size, as Markdown."""
    heads = ["model", "parameters", "body", "of LoRA"]
    heads += [f"hours: {what}" for what in ("all weights", "LoRA", "teacher's scores", "judging")]
    heads += [f"GB: {what}" for what in ("all weights", *(f"{how}, {assumed.gpus} GPUs" for how in ("ZeRO 2", "FSDP")))]
    heads += ["GB: LoRA"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    for name, shape in SHAPES.items():
        sizes = [f"{shape.all / 1e9:.2f} B", f"{shape.body / 1e9:.2f} B", f"{shape.adapter / 1e6:.1f} M"]
        cells = [f"{value:.1f}" for value in hours(shape, assumed).values()]
        cells += [f"{value:.0f}" for value in gigabytes(shape, assumed).values()]
        lines.append(f"| {name} | {' | '.join(sizes + cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for each in fields(Assumptions):
        parser.add_argument(f"--{each.name}", type=type(each.default), default=each.default)
    assumed = Assumptions(**vars(parser.parse_args(arguments)))
    print(table(assumed))
    print(f"\nthe whole recipe: {whole_recipe(assumed):.0f} GPU hours, by {assumed}")
    print(f"tokens: {assumed.train_tokens:,} in training, {assumed.judge_tokens:,} in judging")


if __name__ == "__main__":
    main()
