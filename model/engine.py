"""The engine of one model on one group of ranks: requests in, completions out, one step at a time.

It ties the scheduler, the runner and the sampler together and owns the requests' state. It runs in the
caller's thread and does nothing between calls.
"""

import os
import time
from collections.abc import Hashable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torch import Tensor

from model.answer import Answer
from model.batch import NULL_BLOCK, Batch, decode_first
from model.chat import Chat
from model.config import EngineConfig, ModelConfig
from model.draws import TokenCounts, seed_of
from model.errors import InvalidParams, InvalidPrompt, PromptTooLong, RankError
from model.kv_cache import BlockPool
from model.live import Live
from model.prefix import BlockKeys
from model.ranks import HCCL_PORTS, Ranks, hccl_ports
from model.request import Completion, FinishReason, Request, TokenLogprob
from model.rope import base_of
from model.runner import Runner, join, open_store, settings_line
from model.sampler import logprobs
from model.scheduler import Chunk, Scheduler, Sequence
from model.started_step import StartedStep

#: How long a broken collective waits for the rank that broke it to be reaped.
_REAP_SECONDS = 5.0
#: Between looks at a device that is computing: short beside a step.
_POLL_SECONDS = 0.0001


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What the engine holds now and has done so far."""

    running: int
    waiting: int
    used_blocks: int
    total_blocks: int
    #: Of finished prompts, those found in the cache included.
    prompt_tokens: int
    #: Prompt tokens that were found in the cache.
    cached_tokens: int
    generated_tokens: int
    steps: int
    preemptions: int


class Engine:
    """Generates for any number of requests at once. Not thread-safe: one thread calls it."""

    def __init__(self, config: EngineConfig) -> None:
        """Load the model on all ranks. Raises ModelError: see errors.py."""
        model = ModelConfig.of(config)
        chat = _load_chat(config.path)
        self.config = config
        self.model = model
        self.vocab_size = model.vocab_size
        self.tokenizer = chat.tokenizer if chat else None
        self.chat = chat
        self.stop_token_ids = chat.stop_token_ids if chat else model.eos_token_ids
        self._ranks: Ranks | None = None
        self._lost: RankError | None = None
        #: By the ids of their sequences: the request's and the answer's index.
        self._live: dict[Hashable, Live] = {}
        #: Unfinished answers of each request, by their index.
        self._unfinished: dict[str, list[int]] = {}
        #: The step that the device computes behind the host, if any.
        self._started: StartedStep | None = None
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = self._steps = 0
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        config = self.config
        if config.tensor_parallel_size > 1:
            self._store = open_store(config.master_port)
            if config.device == "npu":
                os.environ[HCCL_PORTS] = hccl_ports(self._store.port)
            self._ranks = Ranks(config.tensor_parallel_size, self._store.port, settings_line(config))
        self._runner = Runner(config, self.model, rank=0)
        if self._ranks:
            join(self._runner, self._store, self._ranks)
        plan = self._runner.plan_cache(self.model.rope.max_position)
        reserved = NULL_BLOCK + 1 if config.shares_prefixes else 0
        self._runner.allocate_cache(plan.num_blocks + reserved, plan.block_size)
        self._overlaps = self._runner.overlaps
        #: Longest prompt plus answer, in tokens.
        self.max_model_len = plan.max_model_len
        self._pool = BlockPool(plan.num_blocks, first=reserved)
        self._scheduler = Scheduler(
            self._pool,
            block_size=plan.block_size,
            max_num_seqs=config.max_num_seqs,
            max_step_tokens=config.max_step_tokens,
            max_model_len=plan.max_model_len,
        )

    @property
    def has_unfinished(self) -> bool:
        """Whether another step has something to do."""
        return bool(self._live)

    def add(self, request: Request) -> None:
        """Queue a request. Raises InvalidParams, InvalidPrompt or PromptTooLong, and then is as before."""
        self._validate(request)
        params = request.params
        seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(8), "little")
        prompt_logprobs: list[TokenLogprob] = []
        self._unfinished[request.id] = list(range(params.n))
        for index in range(params.n):
            live = Live(
                request=request,
                index=index,
                sequence=self._sequence(request, index),
                answer=Answer(params, self.stop_token_ids, self.tokenizer),
                seed=seed_of(seed, index),
                counts=TokenCounts.wanted(params, request.prompt_token_ids),
                prompt_logprobs=prompt_logprobs,
            )
            self._live[request.id, index] = live
            # The others wait for the first to score the prompt: their completions have its scores.
            if index == 0 or params.prompt_logprobs is None:
                self._scheduler.add(live.sequence)

    def _validate(self, request: Request) -> None:
        prompt, params, vocabulary = request.prompt_token_ids, request.params, self.vocab_size
        if request.id in self._unfinished:
            raise InvalidParams(f"request id {request.id!r} is in use by an unfinished request")
        if not prompt:
            raise InvalidPrompt("the prompt is empty; it needs at least one token")
        if not all(isinstance(token, int) and 0 <= token < vocabulary for token in prompt):
            raise InvalidPrompt(f"the prompt holds a token id outside the vocabulary of {vocabulary}")
        if any(token >= vocabulary for token in params.logprob_token_ids):
            raise InvalidParams(f"logprob_token_ids holds an id outside the vocabulary of {vocabulary}")
        if len(prompt) + params.max_tokens > self.max_model_len:
            raise PromptTooLong(
                f"{len(prompt)} prompt tokens and max_tokens {params.max_tokens} exceed the context of "
                f"{self.max_model_len} tokens; shorten the prompt or lower max_tokens"
            )
        if params.stop and self.tokenizer is None:
            raise InvalidParams(
                "stop strings need a tokenizer, which the model folder lacks; use stop_token_ids"
            )

    def _sequence(self, request: Request, index: int) -> Sequence:
        prompt, model = request.prompt_token_ids, self.model
        keys = None
        if self.config.shares_prefixes:
            base = base_of(model.rope, model.head_dim, len(prompt))
            keys = BlockKeys(self._scheduler.block_size, base)
        return Sequence(
            id=(request.id, index),
            tokens=list(prompt),
            prompt_len=len(prompt),
            keys=keys,
            num_scored=None if request.params.prompt_logprobs is None or index else 0,
        )

    def step(self) -> list[Completion]:
        """Start a batch and return the answers that it finished. Raises RankError if a rank is gone.

        Where the device computes behind the host, they are those that the batch before finished: this one
        was planned before that one's tokens were known, and is computed while they are looked at.
        """
        before, self._started = self._started, self._start_step()
        finished = self._land(before) if before else []
        if self._started and not (self._overlaps and self._started.plans_ahead):
            last, self._started = self._started, None
            finished += self._land(last)
        return finished

    def abort(self, request_id: str) -> list[Completion]:
        """Drop a request and return what its unfinished answers have; none if it is unknown or done."""
        indices = self._unfinished.get(request_id, ())
        return [self._finish(self._live[request_id, index], "abort") for index in tuple(indices)]

    def progress(self, request_id: str, index: int = 0) -> tuple[int, ...]:
        """The tokens that an unfinished answer has so far. Raises KeyError for one that is not unfinished."""
        return tuple(self._live[request_id, index].token_ids)

    def stats(self) -> EngineStats:
        """Counters, cheap enough to read after each step."""
        return EngineStats(
            running=len(self._scheduler.running) + len(self._scheduler.ending),
            waiting=len(self._scheduler.waiting),
            used_blocks=self._pool.num_blocks - self._pool.num_free,
            total_blocks=self._pool.num_blocks,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
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

    def _start_step(self) -> StartedStep | None:
        """Plan a step and tell the device; None if there is nothing to run."""
        chunks = decode_first(self._scheduler.schedule())
        if not chunks:
            return None
        logits = self._execute(Batch.of(chunks, self._scheduler.block_size))
        self._steps += 1
        ends = np.cumsum([len(chunk.logit_positions) for chunk in chunks])
        for chunk, end in zip(chunks, ends.tolist(), strict=True):
            if chunk.sequence.scoring:
                self._score(chunk, logits[end - len(chunk.logit_positions) : end])
        samples = [chunk.samples for chunk in chunks]
        sampled = [self._live[chunk.sequence.id] for chunk in chunks if chunk.samples]
        rows = logits if len(sampled) == len(logits) else logits[ends[samples] - 1]
        started = StartedStep.of(sampled, rows) if sampled else None
        self._advance(chunks)
        if started:
            self._await(started)
        return started

    def _await(self, step: StartedStep) -> None:
        """Let the next step begin with the tokens of this one, and without whoever gets its last."""
        self._runner.remember(step.tokens)
        for row, live in enumerate(step.sampled):
            live.sequence.await_token(row)
            if live.sequence.num_generated == live.request.params.max_tokens:
                self._scheduler.end(live.sequence.id)

    def _execute(self, batch: Batch) -> Tensor:
        """Logits of the wanted rows. Raises RankError, and then the other ranks are ended."""
        if self._lost:
            raise self._lost
        if not self._ranks:
            return self._runner.lead(batch)
        with self._ending_the_lost():
            self._ranks.check()
            return self._lead(batch, self._ranks)

    @contextmanager
    def _ending_the_lost(self) -> Iterator[None]:
        """A RankError is final."""
        try:
            yield
        except RankError as error:
            self._lost = error
            self.close()
            raise

    def _lead(self, batch: Batch, ranks: Ranks) -> Tensor:
        try:
            return self._runner.lead(batch)
        except RuntimeError:  # torch's only kind, also for a collective that lost a peer
            ranks.check(_REAP_SECONDS)
            raise

    def _score(self, chunk: Chunk, logits: Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow the chunk's, from its rows of the logits."""
        sequence, live = chunk.sequence, self._live[chunk.sequence.id]
        first = chunk.logit_positions.start
        tokens = sequence.tokens[first + 1 : min(sequence.prompt_len, chunk.logit_positions.stop + 1)]
        count = live.request.params.prompt_logprobs
        assert count is not None  # noqa: S101 - that is why it is scored
        live.prompt_logprobs += logprobs(logits[: len(tokens)], tokens, [count] * len(tokens))
        sequence.num_scored = len(live.prompt_logprobs)

    def _advance(self, chunks: Seq[Chunk]) -> None:
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.num_computed += chunk.num_tokens
            if chunk.samples and not sequence.num_generated:
                self._prompt_tokens += sequence.prompt_len
                self._cached_tokens += sequence.num_cached or 0
                if sequence.num_scored is not None:
                    self._queue_others(self._live[sequence.id].request.id)

    def _queue_others(self, request_id: str) -> None:
        """Queue the answers that waited for the first one's prompt to be scored."""
        for index in self._unfinished[request_id][1:]:
            self._scheduler.add(self._live[request_id, index].sequence)

    def _land(self, step: StartedStep) -> list[Completion]:
        """Give each answer its token, once they are known; return those that this ends."""
        with self._ending_the_lost():
            outcome = step.outcome(self._wait)
        finished = []
        for new in outcome:
            live = new.live
            if self._live.get(live.sequence.id) is not live:
                continue  # it had ended, or was aborted, when this step was under way
            self._generated_tokens += 1
            if reason := live.accept(new.token, new.record):
                finished.append(self._finish(live, reason))
            elif new.corrected and self._started:
                self._started.void(live)
                self._scheduler.retract(live.sequence)
        return finished

    def _wait(self) -> None:
        """For the device, a moment: of a rank that died it would never hear."""
        if self._ranks:
            self._ranks.check(_POLL_SECONDS)
        else:
            time.sleep(_POLL_SECONDS)

    def _finish(self, live: Live, reason: FinishReason) -> Completion:
        self._scheduler.remove(live.sequence.id)
        del self._live[live.request.id, live.index]
        others = self._unfinished[live.request.id]
        others.remove(live.index)
        if not others:
            del self._unfinished[live.request.id]
        return live.completion(reason)


def _load_chat(folder: Path) -> Chat | None:
    """The folder's tokenizer, template and stops; None for one of weights alone, which takes token ids."""
    has_tokenizer = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    return Chat.load(folder) if has_tokenizer else None
