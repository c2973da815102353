"""One rank's decoder and cache, executing what rank 0 plans. `python -m model.runner` is a rank above 0.

It neither schedules nor samples: rank 0's engine does, and tells the others by a broadcast of integers.
"""

import dataclasses
import json
import os
import sys
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from model.batch import HEADER_SIZE, Batch
from model.config import EngineConfig, ModelConfig
from model.devices import DecodeLimits, load_device
from model.errors import ModelError
from model.kv_cache import CachePlan, blocks_for
from model.layers import Loader
from model.parallel import Group, Shard
from model.ranks import Ranks, live_with_parent
from model.transformer import Decoder
from model.weights import Checkpoint, RandomCheckpoint

#: An idle engine's ranks wait for the next batch as long as it takes; a dead peer breaks the wait at once.
_PATIENCE = timedelta(days=365)
_POLL_SECONDS = 0.02


class Runner:
    """One rank of the model. Raises ModelError where the checkpoint or the settings do not hold together."""

    def __init__(self, config: EngineConfig, model: ModelConfig, rank: int) -> None:
        world = config.tensor_parallel_size
        self.config = config
        self.device = load_device(config.device)
        self.device.set_threads(config.num_threads, world)
        self.where = self.device.place(rank)
        self.group = Group(rank, world)
        shard = Shard.of(model, rank, world)
        dtype = self.device.dtype(config.dtype, model.dtype)
        checkpoint = RandomCheckpoint(dtype) if config.random_weights else Checkpoint(config.path, dtype)
        #: Whether a step is told before the tokens of the one before it are known to the host.
        self.overlaps = self.device.RUNS_BEHIND if config.overlap is None else config.overlap
        #: What the last step sampled, which the next one reads on the device; int32 [max_num_seqs].
        self._sampled: Tensor | None = None
        if self.overlaps:
            self._sampled = torch.zeros(config.max_num_seqs, dtype=torch.int32, device=self.where)
        load = Loader(model, shard, checkpoint, self.device, self.where, config.quantization)
        self.decoder = Decoder(load, self.group, self._sampled)
        self.token_bytes = (
            2 * model.num_layers * shard.num_kv_heads * model.head_dim * checkpoint.dtype.itemsize
        )
        self.block_size = config.block_size
        #: No sequence is longer.
        self._length_limit = config.max_model_len or model.rope.max_position

    def plan_cache(self, model_limit: int) -> CachePlan:
        """The size of each rank's cache, for rank 0 to settle. Raises ConfigError."""
        config = self.config
        budget = config.kv_cache_bytes
        if budget is None:
            budget = self.device.spare_bytes(config.tensor_parallel_size)
        plan = (
            CachePlan.contiguous
            if config.attention == "flash"
            else partial(CachePlan.paged, block_size=config.block_size)
        )
        return plan(
            token_bytes=self.token_bytes,
            budget_bytes=budget,
            max_num_seqs=config.max_num_seqs,
            max_model_len=config.max_model_len,
            model_limit=model_limit,
        )

    def allocate_cache(self, num_blocks: int, block_size: int) -> None:
        """Take the cache's memory, on every rank as much as rank 0 says."""
        settled = self.group.broadcast(torch.tensor([num_blocks, block_size], dtype=torch.int32))
        num_blocks, self.block_size = settled.tolist()
        self.caches = self.decoder.allocate_cache(num_blocks, self.block_size)
        longest = min(num_blocks, blocks_for(self._length_limit, self.block_size))
        limits = DecodeLimits(
            self.config.max_num_seqs, longest, self.block_size, has_null_block=self.config.shares_prefixes
        )
        self._recorded = self.decoder.recorded(self.caches, limits)

    def lead(self, batch: Batch) -> Tensor:
        """On rank 0: have all ranks execute a batch. Float32 logits [rows, vocabulary]."""
        if self.group.world > 1:
            for numbers in batch.encode():
                self.group.broadcast(torch.from_numpy(numbers))
        logits = self._execute(batch)
        assert logits is not None  # noqa: S101 - only other ranks get none
        return logits

    def remember(self, tokens: Tensor) -> None:
        """On rank 0: these are the tokens, [rows], that negative ids of the next batch stand for."""
        if self._sampled is not None:
            self._sampled[: len(tokens)].copy_(tokens)

    def follow(self) -> None:
        """On another rank: execute the next batch."""
        header = self.group.broadcast(torch.empty(HEADER_SIZE, dtype=torch.int32)).numpy()
        body = self.group.broadcast(torch.empty(Batch.body_size(header), dtype=torch.int32)).numpy()
        self._execute(Batch.decode(header, body))

    def _execute(self, batch: Batch) -> Tensor | None:
        if self._sampled is not None and self.group.world > 1 and batch.awaits_tokens:
            self._sampled.copy_(self.group.share(self._sampled))
        if self._recorded and len(batch.query_lens) == len(batch.token_ids) == len(batch.logit_rows):
            return self._recorded(batch)
        return self.decoder(batch, self.caches, self.block_size)


def open_store(port: int | None) -> TCPStore:
    """The ranks' meeting point on rank 0, at this port or a free one."""
    return TCPStore("127.0.0.1", port or 0, is_master=True, wait_for_workers=False)


def join(runner: Runner, store: Store, ranks: Ranks | None = None) -> None:
    """Connect this rank to the others once all have loaded; rank 0 watches that none dies meanwhile."""
    rank, world = runner.group.rank, runner.group.world
    store.set(f"loaded/{rank}", "")
    if ranks:
        while not store.check([f"loaded/{other}" for other in range(world)]):
            ranks.check(wait_seconds=_POLL_SECONDS)
    dist.init_process_group(
        runner.device.BACKEND,
        store=PrefixStore("group", store),
        rank=rank,
        world_size=world,
        timeout=_PATIENCE,
    )


def settings_line(config: EngineConfig) -> str:
    """What a rank needs to know, on one line."""
    return json.dumps({**dataclasses.asdict(config), "path": str(config.path.resolve())})


def main() -> None:
    """Be one rank until rank 0 ends."""
    config = EngineConfig(**json.loads(live_with_parent()))
    rank = int(os.environ["RANK"])
    try:
        runner = Runner(config, ModelConfig.of(config), rank)
    except ModelError as error:
        sys.exit(f"rank {rank}: {error}")
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    join(runner, TCPStore(address, port, is_master=False))
    runner.allocate_cache(0, 0)
    while True:
        runner.follow()


if __name__ == "__main__":
    main()
