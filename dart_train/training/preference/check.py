"""`data check` for rows of pairs (DPO) and of prompts (GRPO): read as training reads them, each fault by its code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...data.check import RowChecker
from ...data.check_report import RowReport
from ...data.encoder import Encoder, RowLength
from ...data.issues import ERROR, BadRowError, RowIssue
from ...data.sources import DataSource
from .rows import read_row


class PreferenceChecker(RowChecker):
    """pairs: rows have a chosen and a rejected answer. max_length: of DPO, at which TRL cuts the answers."""

    def __init__(
        self,
        source: DataSource,
        encoder: Encoder | None,
        decode: bool = True,
        *,
        pairs: bool = True,
        max_length: int | None = None,
    ) -> None:
        super().__init__(source, encoder, decode)
        self.pairs, self.max_length = pairs, max_length

    def check_row(self, row: Mapping[str, Any], index: int) -> RowReport:
        place = self.source.row_id(index)
        try:
            found = read_row(row, self.pairs, place)
        except BadRowError as bad:
            return RowReport(self.source.label(row, index), [bad.issue])
        sizes, issues = self._check_images(found.prompt)
        conversations = found.conversations()
        if any("\ufffd" in text for each in conversations for turn in each.turns for text in turn.texts):
            issues.append(RowIssue("lost_characters"))
        digest = found.together().digest(str(self.source.store.root))
        report = RowReport(found.prompt.label(place), issues, digest)
        if self.encoder is None or any(issue.severity == ERROR for issue in issues):
            return report
        try:
            lengths = [self.encoder.measure(each, tuple(sizes)) for each in conversations]
            answers = [self.encoder.count_targets(each) for each in conversations] if self.pairs else []
        except BadRowError as bad:
            return replace(report, issues=[*issues, bad.issue])
        longest = max(lengths, key=lambda length: length.total)
        if note := self._note(lengths, answers):
            issues = [*issues, note]
        return replace(
            report,
            issues=issues,
            total=longest.total,
            used=longest.total if self.max_length is None else min(longest.total, self.max_length),
            visual=list(longest.visual),
            answer_starts=list(longest.answer_starts),
            prompt_tokens_after=list(longest.prompt_tokens_after),
            answers=answers,
        )

    def _note(self, lengths: list[RowLength], answers: list[int]) -> RowIssue | None:
        """What max_length does to a pair."""
        if self.max_length is None or not answers:
            return None
        prompt, longest = lengths[0].total - answers[0], max(length.total for length in lengths)
        if prompt >= self.max_length:
            what = f"the prompt has {prompt} tokens, and data.max_length is {self.max_length}"
            return RowIssue("nothing_supervised", what)
        cut = longest - self.max_length
        return RowIssue("truncated_text", f"{cut} of {longest} tokens cut") if cut > 0 else None
