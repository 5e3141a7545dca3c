"""Score groups on a Ray cluster: Ray Data reads, deals out and writes; each worker loads the teacher once.

python examples/annotate_with_ray.py --teacher BAAI/bge-reranker-v2-m3 --train groups.parquet --num_gpus 1
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ray
from tiny_task import tiny_groups, tiny_model

from rerank_trainer import TeacherScorer, load_groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="Hub id, or a folder that all machines see")
    parser.add_argument("--train", help="parquet file or folder with the columns query and passages, where all see it")
    parser.add_argument("--output_dir", type=Path, default=Path("scored"), help="where all machines see it")
    parser.add_argument("--num_workers", type=int, default=1, help="copies of the teacher")
    parser.add_argument("--num_gpus", type=float, default=0, help="GPUs of each of them")
    parser.add_argument("--smoke", action="store_true", help="a tiny teacher on made-up rows, on this machine alone")
    options = parser.parse_args()
    if not options.smoke and not (options.train and options.teacher):
        parser.error("--train and --teacher are needed: groups in parquet and a reranker, or --smoke")

    if options.smoke:
        options.teacher, options.train = str(Path("tiny_teacher").absolute()), str(Path("tiny.parquet").absolute())
        tiny_model().save_pretrained(options.teacher)
        tiny_groups(seed=0).to_parquet(options.train)
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
    groups = ray.data.read_parquet(options.train)
    scored = groups.map_batches(
        TeacherScorer,
        fn_constructor_kwargs={"teacher": options.teacher},
        batch_format="pyarrow",
        batch_size=256,
        compute=ray.data.ActorPoolStrategy(size=options.num_workers),
        num_gpus=options.num_gpus,
    )
    scored.write_parquet(str(options.output_dir.absolute()))
    print(f"{len(load_groups(str(options.output_dir)))} groups with teacher_scores in {options.output_dir}")


if __name__ == "__main__":
    main()
