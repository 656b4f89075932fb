"""The model classes of `lmms-eval --model dart_train`. Only lmms-eval imports this file, as it needs lmms-eval."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval import utils
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from ..models.prompts import Conversation
from .answering import VisualTokenCount, answer, from_messages, from_question, likelihood
from .loading import open_model


class _EvaluatedModel(lmms):
    """One process with its own copy of the model; `accelerate launch` starts several."""

    def __init__(
        self, batch_size: int | str = 1, max_batch_size: Any = None, device: Any = None, **model_args: Any
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        several_gpus = self._world_size > 1 and self.accelerator.device.type != "cpu"
        self.loaded = open_model(model_args, str(self.accelerator.device) if several_gpus else device)
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 1  # "auto" is one by one
        self.visual_tokens = VisualTokenCount()

    @property
    def model(self) -> Any:
        return self.loaded.model

    @property
    def tokenizer(self) -> Any:
        return self.loaded.processor.tokenizer

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def device(self) -> Any:
        return self.loaded.model.device

    @staticmethod
    def generation_kwargs(arguments: tuple[Any, ...]) -> Any:
        """The generation options among a request's arguments."""
        raise NotImplementedError

    def conversation(self, arguments: tuple[Any, ...]) -> Conversation:
        """The conversation of a request's arguments."""
        raise NotImplementedError

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Requests with the same generation_kwargs are batched together, long prompts first."""
        order = utils.Collator(
            [request.args for request in requests],
            lambda arguments: (-len(arguments[0]), arguments[0]),
            group_fn=lambda arguments: self.generation_kwargs(arguments),
            grouping=True,
        )
        results: list[GenerationResult] = []
        start = time.perf_counter()
        for chunk in self._with_progress(order.get_batched(n=self.batch_size, batch_fn=None), len(requests)):
            results += self._answer(chunk)
        self._log(results, time.perf_counter() - start)
        return list(order.get_original(results))

    def _answer(self, chunk: Sequence[tuple[Any, ...]]) -> list[GenerationResult]:
        conversations = [self.conversation(arguments) for arguments in chunk]
        generation_kwargs = self.generation_kwargs(chunk[0])
        answers = answer(self.loaded, conversations, generation_kwargs, self.visual_tokens)
        for arguments, each in zip(chunk, answers, strict=True):
            self.cache_hook.add_partial("generate_until", (arguments[0], generation_kwargs), each.text)
        return [GenerationResult(each.text, TokenCounts(each.tokens_in, each.tokens_out)) for each in answers]

    def _with_progress(self, chunks: Iterator[Any], total: int) -> Iterator[Any]:
        with tqdm(total=total, disable=self.rank != 0, desc="dart_train answers") as bar:
            for chunk in chunks:
                yield chunk
                bar.update(len(chunk))

    def _log(self, results: Sequence[GenerationResult], seconds: float) -> None:
        tokens = sum(result.token_counts.output_tokens for result in results)
        log_metrics(
            total_gen_tokens=tokens,
            total_elapsed_time=seconds,
            avg_speed=tokens / seconds if seconds else 0.0,
            additional_metrics={
                "rank": self.rank,
                "visual_tokens": self.visual_tokens.before,
                "visual_tokens_kept": self.visual_tokens.kept,
            },
        )

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """(mean loss, greedy) of each request, as lmms-eval's own models return it: a task takes the answer with the
        lowest loss. The pair is wrapped, because the evaluator (0.7.3) turns anything else into text."""
        results = []
        for (arguments,) in self._with_progress(([request.args] for request in requests), len(requests)):
            context, target, visual, doc_id, task, split = arguments
            doc = self.task_dict[task][split][doc_id]
            continuation = target if isinstance(target, str) else target(doc)
            conversation = from_question(self.loaded.processor, context, visual(doc))
            found = likelihood(self.loaded, conversation, continuation)
            results.append(GenerationResult((found.loss, found.greedy)))
        return results

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("dart_train supports tasks with a single round; choose other tasks")


class ChatModel(_EvaluatedModel):
    """For tasks that give chat messages: any number of images, anywhere in the conversation."""

    is_simple = False

    @staticmethod
    def generation_kwargs(arguments: tuple[Any, ...]) -> Any:
        return arguments[2]

    def conversation(self, arguments: tuple[Any, ...]) -> Conversation:
        _, to_messages, _, doc_id, task, split = arguments
        messages = ChatMessages(messages=to_messages(self.task_dict[task][split][doc_id])).to_hf_messages()
        return from_messages(self.loaded.processor, messages)


class SimpleModel(_EvaluatedModel):
    """For tasks that give a text and images, and for tasks that score given answers."""

    is_simple = True

    @staticmethod
    def generation_kwargs(arguments: tuple[Any, ...]) -> Any:
        return arguments[1]

    def conversation(self, arguments: tuple[Any, ...]) -> Conversation:
        context, _, to_visual, doc_id, task, split = arguments
        return from_question(self.loaded.processor, context, to_visual(self.task_dict[task][split][doc_id]))
