"""The classes that lmms-eval makes of --model dart_train. Imported by it alone, for only there is `lmms`."""

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
from .answering import Tokens, answer, likelihood
from .conversations import plain, visual_question
from .options import open_model


class _Asked(lmms):
    """One process, or one of several behind `accelerate launch`, each with a model of its own."""

    def __init__(self, batch_size: int | str = 1, max_batch_size: Any = None, device: Any = None, **given: Any) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        several = self._world_size > 1 and self.accelerator.device.type != "cpu"
        self.loaded = open_model(given, str(self.accelerator.device) if several else device)
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 1  # auto: one by one
        self.seen = Tokens()

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

    def conversation(self, arguments: tuple[Any, ...]) -> tuple[Conversation, dict[str, Any]]:
        """What is asked in a request, and how the answer is to be generated."""
        raise NotImplementedError

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Requests that want the same generation go together, long prompts first."""
        order = utils.Collator(
            [request.args for request in requests],
            lambda arguments: (-len(arguments[0]), arguments[0]),
            group_fn=lambda arguments: self.conversation_wishes(arguments),
            grouping=True,
        )
        results, begin = [], time.perf_counter()
        for chunk in self._shown(order.get_batched(n=self.batch_size, batch_fn=None), len(requests)):
            results += self._answers(chunk)
        self._tell(results, time.perf_counter() - begin)
        return list(order.get_original(results))

    def _answers(self, chunk: Sequence[tuple[Any, ...]]) -> list[GenerationResult]:
        asked = [self.conversation(arguments) for arguments in chunk]
        wishes = asked[0][1]
        found = answer(self.loaded, [conversation for conversation, _ in asked], wishes, self.seen)
        for arguments, each in zip(chunk, found, strict=True):
            self.cache_hook.add_partial("generate_until", (arguments[0], wishes), each.text)
        return [GenerationResult(each.text, TokenCounts(each.tokens_in, each.tokens_out)) for each in found]

    def _shown(self, chunks: Iterator[Any], total: int) -> Iterator[Any]:
        with tqdm(total=total, disable=self.rank != 0, desc="dart_train answers") as bar:
            for chunk in chunks:
                yield chunk
                bar.update(len(chunk))

    def _tell(self, results: Sequence[GenerationResult], seconds: float) -> None:
        written = sum(result.token_counts.output_tokens for result in results)
        log_metrics(
            total_gen_tokens=written,
            total_elapsed_time=seconds,
            avg_speed=written / seconds if seconds else 0.0,
            additional_metrics={
                "rank": self.rank,
                "visual_tokens": self.seen.before,
                "visual_tokens_kept": self.seen.kept,
            },
        )

    @staticmethod
    def conversation_wishes(arguments: tuple[Any, ...]) -> Any:
        raise NotImplementedError

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """(loss, greedy) of each: a task takes the answer of the lowest loss, and the package's own models give the
        mean one. The pair is wrapped, because the evaluator (0.7.3) makes a text of any that is not."""
        found = []
        for context, target, visual, doc_id, task, split in self._shown_each(requests):
            doc = self.task_dict[task][split][doc_id]
            continuation = target if isinstance(target, str) else target(doc)
            told = likelihood(self.loaded, visual_question(self.loaded.processor, context, visual(doc)), continuation)
            found.append(GenerationResult((told.loss, told.greedy)))
        return found

    def _shown_each(self, requests: Sequence[Instance]) -> Iterator[Any]:
        return (chunk[0] for chunk in self._shown(([request.args] for request in requests), len(requests)))

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("dart_train answers one round at a time; choose tasks of a single round")


class Chat(_Asked):
    """Tasks that bring messages: any number of pictures, anywhere in the conversation."""

    is_simple = False

    @staticmethod
    def conversation_wishes(arguments: tuple[Any, ...]) -> Any:
        return arguments[2]

    def conversation(self, arguments: tuple[Any, ...]) -> tuple[Conversation, dict[str, Any]]:
        _, to_messages, wishes, doc_id, task, split = arguments
        messages = ChatMessages(messages=to_messages(self.task_dict[task][split][doc_id])).to_hf_messages()
        return plain(self.loaded.processor, messages), wishes


class Simple(_Asked):
    """Tasks that bring a text and pictures; also those that weigh given answers."""

    is_simple = True

    @staticmethod
    def conversation_wishes(arguments: tuple[Any, ...]) -> Any:
        return arguments[1]

    def conversation(self, arguments: tuple[Any, ...]) -> tuple[Conversation, dict[str, Any]]:
        context, wishes, to_visual, doc_id, task, split = arguments
        visuals = to_visual(self.task_dict[task][split][doc_id])
        return visual_question(self.loaded.processor, context, visuals), wishes
