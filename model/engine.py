"""The engine of one model on one group of ranks: requests in, completions out, one step at a time.

It ties the scheduler, the runner and the sampler together and owns the requests' state. It runs in the
caller's thread and does nothing between calls.
"""

import os
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torch import Tensor

from model.answer import Answer
from model.batch import Batch, decode_first
from model.chat import Chat
from model.config import EngineConfig, ModelConfig
from model.errors import InvalidParams, InvalidPrompt, PromptTooLong
from model.kv_cache import BlockPool
from model.parallel import Shard
from model.ranks import Ranks
from model.request import Completion, FinishReason, Request, TokenLogprob
from model.runner import Runner, join, open_store, settings_line
from model.sampler import Draws, logprobs, sample
from model.scheduler import Chunk, Scheduler, Sequence

_SEED_BITS = 64
#: How long a broken collective waits for the rank that broke it to be reaped.
_REAP_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What the engine holds now and has done so far."""

    running: int
    waiting: int
    used_blocks: int
    total_blocks: int
    prompt_tokens: int
    generated_tokens: int
    steps: int
    preemptions: int


@dataclass(slots=True)
class _Live:
    """An unfinished request."""

    request: Request
    sequence: Sequence
    answer: Answer
    seed: int
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Engine:
    """Generates for any number of requests at once. Not thread-safe: one thread calls it."""

    def __init__(self, config: EngineConfig) -> None:
        """Load the model on all ranks. Raises ModelError: see errors.py."""
        model = ModelConfig.load(config.path)
        Shard.of(model, 0, config.tensor_parallel_size)
        chat = _load_chat(config.path)
        self.config = config
        self.vocab_size = model.vocab_size
        self.tokenizer = chat.tokenizer if chat else None
        self.chat = chat
        self.stop_token_ids = chat.stop_token_ids if chat else model.eos_token_ids
        self._ranks: Ranks | None = None
        self._live: dict[str, _Live] = {}
        self._prompt_tokens = self._generated_tokens = self._steps = 0
        try:
            self._start(model)
        except BaseException:
            self.close()
            raise

    def _start(self, model: ModelConfig) -> None:
        config = self.config
        if config.tensor_parallel_size > 1:
            self._store = open_store(config.master_port)
            self._ranks = Ranks(config.tensor_parallel_size, self._store.port, settings_line(config))
        self._runner = Runner(config, model, rank=0)
        if self._ranks:
            join(self._runner, self._store, self._ranks)
        plan = self._runner.plan_cache(model.rope.max_position)
        self._runner.allocate_cache(plan.num_blocks)
        #: Longest prompt plus answer, in tokens.
        self.max_model_len = plan.max_model_len
        self._pool = BlockPool(plan.num_blocks)
        self._scheduler = Scheduler(
            self._pool,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_step_tokens=config.max_step_tokens,
        )

    @property
    def has_unfinished(self) -> bool:
        """Whether another step has something to do."""
        return bool(self._live)

    def add(self, request: Request) -> None:
        """Queue a request. Raises InvalidParams, InvalidPrompt or PromptTooLong, and then is as before."""
        prompt, params = request.prompt_token_ids, request.params
        if request.id in self._live:
            raise InvalidParams(f"request id {request.id!r} is in use by an unfinished request")
        if not prompt:
            raise InvalidPrompt("the prompt is empty; it needs at least one token")
        if not all(isinstance(token, int) and 0 <= token < self.vocab_size for token in prompt):
            raise InvalidPrompt(f"the prompt holds a token id outside the vocabulary of {self.vocab_size}")
        if len(prompt) + params.max_tokens > self.max_model_len:
            raise PromptTooLong(
                f"{len(prompt)} prompt tokens and max_tokens {params.max_tokens} exceed the context of "
                f"{self.max_model_len} tokens; shorten the prompt or lower max_tokens"
            )
        if params.stop and self.tokenizer is None:
            raise InvalidParams(
                "stop strings need a tokenizer, which the model folder lacks; use stop_token_ids"
            )
        sequence = Sequence(id=request.id, tokens=list(prompt), prompt_len=len(prompt))
        seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(8), "little")
        self._live[request.id] = _Live(
            request=request,
            sequence=sequence,
            answer=Answer(params, self.stop_token_ids, self.tokenizer),
            seed=seed % 2**_SEED_BITS,
        )
        self._scheduler.add(sequence)

    def step(self) -> list[Completion]:
        """Compute one batch and return the requests that it finished. Raises RankError if a rank is gone."""
        chunks = decode_first(self._scheduler.schedule())
        if not chunks:
            return []
        batch = Batch.of(chunks, self.config.block_size)
        sampled = [self._live[chunk.sequence.id] for chunk in chunks if chunk.samples]
        tokens, records = self._sample(batch, sampled)
        self._steps += 1
        self._advance(chunks)
        finished = []
        for live, token, record in zip(sampled, tokens, records, strict=True):
            live.sequence.tokens.append(token)
            self._generated_tokens += 1
            if record is not None:
                live.logprobs.append(record)
            if reason := live.answer.accept(token, live.sequence.num_generated):
                finished.append(self._finish(live, reason))
        return finished

    def abort(self, request_id: str) -> Completion | None:
        """Drop a request and return what it has so far; None if it is unknown or finished."""
        live = self._live.get(request_id)
        return self._finish(live, "abort") if live else None

    def stats(self) -> EngineStats:
        """Counters, cheap enough to read after each step."""
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            used_blocks=self._pool.num_blocks - self._pool.num_free,
            total_blocks=self._pool.num_blocks,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            steps=self._steps,
            preemptions=self._scheduler.num_preemptions,
        )

    def close(self) -> None:
        """End the other ranks and leave their group. The engine is of no use afterwards."""
        if self._ranks:
            self._ranks.close()
            self._ranks = None
            if dist.is_initialized():
                dist.destroy_process_group()

    def _sample(self, batch: Batch, sampled: Seq[_Live]) -> tuple[list[int], list[TokenLogprob | None]]:
        """The next token of each sampled request, and its log-probabilities where they are wanted."""
        logits = self._execute(batch)
        tokens = sample(logits, _draws(sampled)).tolist()
        records: list[TokenLogprob | None] = [None] * len(tokens)
        counts = {
            row: count
            for row, live in enumerate(sampled)
            if (count := live.request.params.logprobs) is not None
        }
        if counts:
            rows = list(counts)
            found = logprobs(logits[rows], [tokens[row] for row in rows], list(counts.values()))
            for row, record in zip(rows, found, strict=True):
                records[row] = record
        return tokens, records

    def _execute(self, batch: Batch) -> Tensor:
        """Logits of the sampled rows. Raises RankError."""
        if self._ranks:
            self._ranks.check()
        try:
            return self._runner.lead(batch)
        except RuntimeError:  # torch's only kind, also for a collective that lost a peer
            if self._ranks:
                self._ranks.check(_REAP_SECONDS)
            raise

    def _advance(self, chunks: Seq[Chunk]) -> None:
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.num_computed < sequence.prompt_len == sequence.num_computed + chunk.num_tokens:
                self._prompt_tokens += sequence.prompt_len
            sequence.num_computed += chunk.num_tokens

    def _finish(self, live: _Live, reason: FinishReason) -> Completion:
        sequence = live.sequence
        self._scheduler.remove(sequence.id)
        del self._live[sequence.id]
        token_ids = sequence.tokens[sequence.prompt_len :]
        return Completion(
            request_id=sequence.id,
            token_ids=tuple(token_ids),
            text=live.answer.text(token_ids),
            finish_reason=reason,
            logprobs=None if live.request.params.logprobs is None else tuple(live.logprobs),
            prompt_tokens=sequence.prompt_len,
            cached_tokens=0,
        )


def _draws(sampled: Seq[_Live]) -> Draws:
    params = [live.request.params for live in sampled]
    return Draws(
        temperature=np.array([one.temperature for one in params], np.float32),
        top_k=np.array([one.top_k for one in params], np.int64),
        top_p=np.array([one.top_p for one in params], np.float32),
        seed=np.array([live.seed for live in sampled], np.uint64),
        position=np.array([live.sequence.num_generated for live in sampled], np.uint64),
    )


def _load_chat(folder: Path) -> Chat | None:
    """The folder's tokenizer, template and stops; None for one of weights alone, which takes token ids."""
    has_tokenizer = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    return Chat.load(folder) if has_tokenizer else None
