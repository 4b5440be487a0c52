"""What a recipe says of a target that is a task of the LM Evaluation Harness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mergetomix.records import Kind
from mergetomix.sections.section import Seed, Text
from mergetomix.sections.target import TargetBase

Split = Literal["validation", "test"]
SUFFIXES = (".yaml", ".yml")
UNITS = {
    "perplexity": "the logarithm of the perplexity, in nats per document,",
    "word_perplexity": "the logarithm of the perplexity, in nats per word,",
    "byte_perplexity": "the logarithm of the perplexity, in nats per byte,",
    "bits_per_byte": "bits per byte",
}
"""What scores are counted in where the harness has a perplexity, by its metric."""


class HarnessSection(TargetBase):
    """A task of EleutherAI's LM Evaluation Harness, scored as its command `lm_eval` scores it."""

    score: Literal["harness"]
    """`harness`: a benchmark of the LM Evaluation Harness, or one of your own in its format; needs
    `pip install "mergetomix[harness]"`."""
    task: Text
    """The name of a task or of a group, such as `gsm8k` or `mmlu`, or the YAML file of one."""
    include_path: Text | list[Text] | None = None
    """Folders with task files of your own, as the command takes them."""
    metric: Text | None = None
    """What is scored, as the harness names it: `acc`, or `exact_match,strict-match` where a task
    has several filters; null takes the only one."""
    each: bool = False
    """Of a group: `true` makes a target of each of its tasks, which share the `weight`; else the
    group is one target, averaged as the harness does."""
    split: Split | None = None
    """Which documents of the task are meant, where it has both a validation and a test split."""
    allow_test_split: bool = False
    """Lets mixtures be chosen on a test split, of which the search then sees `select_fraction`."""
    num_fewshot: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Examples shown before each question; null takes the task's own number."""
    fewshot_seed: Seed = 1234
    """Seed of the draw of these; 1234 is the command's."""
    limit: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Take the first so many documents of a task, or such a share of them."""
    gen_kwargs: dict[str, Any] = Field(default={})
    """Changes to how a task generates, such as `{max_gen_toks: 64}`."""
    system_instruction: Text | None = None
    """A system turn, or a text before the prompt without a chat template."""
    apply_chat_template: bool = False
    """Render prompts by the chat template of the tokenizer."""
    fewshot_as_multiturn: bool | None = None
    """Render examples as turns of their own; null does so with a chat template, as the command."""
    metadata: dict[str, Any] = Field(default={})
    """What some tasks ask for, as with `--metadata`, such as `{max_seq_lengths: [4096]}`."""
    confirm_run_unsafe_code: bool = False
    """Lets a task run what the model writes, such as HumanEval does, on this machine."""
    trust_task_code: bool = False
    """Lets a task file of your own call Python code (`!function`, `class`)."""

    @model_validator(mode="after")
    def _agrees(self) -> HarnessSection:
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn: true needs apply_chat_template: true")
        if "max_length" in self.gen_kwargs:
            raise ValueError("gen_kwargs: say max_gen_toks, the tokens of an answer alone")
        return self

    def described(self, kind: Kind, unit: str) -> str:
        """Returns which number of the harness it is, and what stands in its place."""
        name = (self.metric or "").partition(",")[0]
        task = Path(self.task).stem if self.is_file else self.task
        if kind == "loss":
            per = UNITS.get(name, "the loss of its metric")
            return f"{per} of {task} (lower is better)"
        return f"{self.metric or 'the metric'} of {task} (higher is better)"

    @property
    def is_file(self) -> bool:
        """Whether the task is written as a YAML file."""
        return self.task.endswith(SUFFIXES)

    @property
    def folders(self) -> list[str]:
        """The folders with task files of the user's own."""
        given = self.include_path
        return [] if given is None else [given] if isinstance(given, str) else given

    @property
    def as_turns(self) -> bool:
        """Whether examples are turns of their own."""
        given = self.fewshot_as_multiturn
        return self.apply_chat_template if given is None else given
