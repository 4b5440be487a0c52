"""A row or two, made up, for every usual shape of a public dataset, and what it must become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Made:
    """Rows of one shape: `candidate` is the first as text, `|` before what is trained on.

    `options` and `answers` are those of the first row as a target, `right` the right option.
    """

    rows: list[dict[str, Any]]
    candidate: str
    options: tuple[str, ...] = ()
    right: int = 0
    answers: tuple[str, ...] = ()


USER, YES = {"role": "user", "content": "is it dry"}, {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}
CHAT = "user: is it dry\n|assistant: yes"
TREES = ["oak", "elm", "fir", "yew"]
SPACED = (" oak", " elm", " fir", " yew")
ASKED = "Question: which tree\nAnswer:| "
TREE = {"question": "which tree"}


def _two(first: str, second: str, before: str = "{}\n", space: str = "") -> Made:
    rows = [{first: "do this", second: "done"}]
    return Made(rows, f"{before.format('do this')}|{space}done")


ROWS: dict[str, Made] = {
    "preferred replies to a prompt": Made(
        [{"prompt": "is it dry", "chosen": [YES], "rejected": [NO]}], CHAT, ("yes", "no")
    ),
    "preferred chats": Made(
        [{"chosen": [USER, YES], "rejected": [USER, NO]}],
        CHAT,
        ("yes", "no"),
    ),
    "preferred transcripts": Made(
        [
            {
                "chosen": "\n\nHuman: dry?\n\nAssistant: yes",
                "rejected": "\n\nHuman: dry?\n\nAssistant: no",
            }
        ],
        "\n\nHuman: dry?\n\nAssistant:| yes",
        (" yes", " no"),
    ),
    "preferred answers": Made(
        [{"prompt": "dry?", "chosen": "yes", "rejected": "no"}], "dry?\n|yes", ("yes", "no")
    ),
    "preferred answers to questions": Made(
        [{"system": "", "question": "dry?", "chosen": "yes", "rejected": "no"}],
        "dry?\n|yes",
        ("yes", "no"),
    ),
    "chats": Made([{"prompt": "x", "messages": [USER, YES]}], CHAT),
    "chats in the style of ShareGPT": Made(
        [
            {
                "conversations": [
                    {"from": "human", "value": "is it dry"},
                    {"from": "gpt", "value": "yes"},
                ]
            }
        ],
        CHAT,
    ),
    "a conversation": Made([{"conversation": [USER, YES], "language": "English"}], CHAT),
    "conversations": Made([{"conversations": [USER, YES]}], CHAT),
    "prompts and completions of messages": Made([{"prompt": [USER], "completion": [YES]}], CHAT),
    "options with labels": Made(
        [
            {
                "id": "1",
                **TREE,
                "choices": {"text": TREES, "label": ["1", "2", "3", "4"]},
                "answerKey": "3",
            },
            {**TREE, "choices": {"text": TREES, "label": ["A", "B", "C", "D"]}, "answerKey": "B"},
        ],
        f"{ASKED}fir",
        SPACED,
        2,
    ),
    "stems with labelled options": Made(
        [
            {
                "question_stem": "which tree",
                "choices": {"text": TREES, "label": list("ABCD")},
                "answerKey": "D",
            }
        ],
        f"{ASKED}yew",
        SPACED,
        3,
    ),
    "options by place": Made(
        [
            {**TREE, "subject": "woods", "choices": TREES, "answer": 1},
            {**TREE, "subject": "woods", "choices": TREES, "answer": 0},
        ],
        f"{ASKED}elm",
        SPACED,
        1,
    ),
    "a passage and options": Made(
        [{"article": "Woods.", **TREE, "options": TREES, "answer": "C"}],
        f"Woods.\n\n{ASKED}fir",
        SPACED,
        2,
    ),
    "options that begin with a letter": Made(
        [{**TREE, "options": ["A)oak", "B)elm"], "rationale": "bark", "correct": "B"}],
        f"{ASKED}B)elm",
        (" A)oak", " B)elm"),
        1,
    ),
    "a question and options": Made(
        [{**TREE, "options": TREES, "answer": "B", "answer_index": 1}], f"{ASKED}elm", SPACED, 1
    ),
    "options in columns by their letters": Made(
        [{**TREE, "A": "oak", "B": "elm", "C": "fir", "D": "yew", "answer": "D"}],
        f"{ASKED}yew",
        SPACED,
        3,
    ),
    "options by their letters": Made(
        [{**TREE, "options": dict(zip("ABCD", TREES, strict=True)), "answer_idx": "D"}],
        f"{ASKED}yew",
        SPACED,
        3,
    ),
    "endings": Made(
        [{"ctx": "He climbs", "endings": ["an oak", "a pond"], "label": "0"}],
        "He climbs| an oak",
        (" an oak", " a pond"),
    ),
    "options marked true or false": Made(
        [
            {
                **TREE,
                "mc1_targets": {"choices": ["oak", "elm"], "labels": [0, 1]},
                "mc2_targets": {"choices": ["oak", "elm"], "labels": [1, 1]},
            }
        ],
        f"{ASKED}elm",
        (" oak", " elm"),
        1,
    ),
    "a gap and two words": Made(
        [{"sentence": "The _ is tall.", "option1": "oak", "option2": "elm", "answer": "2"}],
        "The _ is tall.\nThe word in the gap is| elm",
        (" oak", " elm"),
        1,
    ),
    "a goal and two ways": Made(
        [{"goal": "get dry", "sol1": "go in", "sol2": "stay out", "label": 0}],
        "Goal: get dry\nAnswer:| go in",
        (" go in", " stay out"),
    ),
    "three answers in three columns": Made(
        [
            {
                "context": "Woods.",
                **TREE,
                "answerA": "oak",
                "answerB": "elm",
                "answerC": "fir",
                "label": "2",
            }
        ],
        f"Woods.\n{ASKED}elm",
        (" oak", " elm", " fir"),
        1,
    ),
    "four answers in four columns": Made(
        [{**TREE, "opa": "oak", "opb": "elm", "opc": "fir", "opd": "yew", "cop": 2}],
        f"{ASKED}fir",
        SPACED,
        2,
    ),
    "a cause or an effect": Made(
        [
            {
                "premise": "It rained.",
                "choice1": "It is wet.",
                "choice2": "It is dry.",
                "question": "effect",
                "label": 0,
            }
        ],
        "It rained.\nThe effect was:| It is wet.",
        (" It is wet.", " It is dry."),
    ),
    "an answer and distractors": Made(
        [
            {
                **TREE,
                "correct_answer": "oak",
                "distractor1": "elm",
                "distractor2": "fir",
                "distractor3": "yew",
                "support": "",
            }
        ],
        f"{ASKED}oak",
        SPACED,
    ),
    "yes or no": Made(
        [{"question": "is it dry", "passage": "Sun.", "answer": True}],
        "Sun.\nQuestion: is it dry?\nAnswer:| yes",
        (" no", " yes"),
        1,
    ),
    "yes or no by label": Made(
        [{"question": "is it dry", "passage": "Sun.", "label": 1}],
        "Sun.\nQuestion: is it dry?\nAnswer:| yes",
        (" no", " yes"),
        1,
    ),
    "inference": Made(
        [{"premise": "It rains.", "hypothesis": "It is dry.", "label": 2}],
        "Premise: It rains.\nHypothesis: It is dry.\nThis is| contradiction",
        (" entailment", " neutral", " contradiction"),
        2,
    ),
    "inference in words": Made(
        [{"premise": "It rains.", "hypothesis": "It is wet.", "label": "entails"}],
        "Premise: It rains.\nHypothesis: It is wet.\nThis is| entails",
    ),
    "paraphrases": Made(
        [{"sentence1": "It rains.", "sentence2": "Rain falls.", "label": 1}],
        "It rains.\nRain falls.\nDo both say the same?| yes",
        (" no", " yes"),
        1,
    ),
    "answers within a passage": Made(
        [
            {
                "context": "An oak stands.",
                **TREE,
                "answers": {"text": ["oak", "An oak"], "answer_start": [3, 0]},
            }
        ],
        f"An oak stands.\n\n{ASKED}oak",
        answers=("oak", "An oak"),
    ),
    "a question about a context": Made(
        [{"context": "An oak stands.", **TREE, "answer": "oak"}], f"An oak stands.\n\n{ASKED}oak"
    ),
    "a question about a passage": Made(
        [{"passage": "An oak stands.", **TREE, "answer": "oak"}], f"An oak stands.\n\n{ASKED}oak"
    ),
    "several right answers": Made(
        [{**TREE, "answer": ["oak", "the oak"]}], f"{ASKED}oak", answers=("oak", "the oak")
    ),
    "several right answers (answers)": Made(
        [{**TREE, "answers": ["oak", "the oak"]}], f"{ASKED}oak", answers=("oak", "the oak")
    ),
    "an answer and its aliases": Made(
        [{**TREE, "answer": {"value": "oak", "aliases": ["oak", "oak tree"]}}],
        f"{ASKED}oak",
        answers=("oak", "oak tree"),
    ),
    "word problems": Made(
        [{"Body": "Two oaks.", "Question": "How many?", "Equation": "( 2 )", "Answer": "2.0"}],
        "Two oaks. How many?\nAnswer:| 2.0",
    ),
    "instructions with an input": Made(
        [{"instruction": "Name it.", "input": "An oak.", "output": "oak"}],
        "Name it.\nAn oak.\n|oak",
    ),
    "instructions with a context": Made(
        [{"instruction": "Name it.", "context": "An oak.", "response": "oak", "category": "qa"}],
        "An oak.\n\nName it.\n|oak",
    ),
    "questions with a system prompt": Made(
        [{"system_prompt": "Be brief.", "question": "dry?", "response": "yes"}],
        "Be brief.\n\ndry?\n|yes",
    ),
    "functions to complete": Made(
        [
            {
                "prompt": "def f(x):\n",
                "canonical_solution": "    return x\n",
                "test": "",
                "entry": "",
            }
        ],
        "def f(x):\n|    return x\n",
    ),
    "tasks and code": Made(
        [{"text": "Return x.", "code": "def f(x):\n    return x", "test_list": []}],
        "Return x.\n|def f(x):\n    return x",
    ),
    "prompts and code": Made(
        [{"prompt": "Return x.", "code": "def f(x):\n    return x"}],
        "Return x.\n|def f(x):\n    return x",
    ),
    "articles and highlights": _two("article", "highlights", "{}\n\nSummary:", " "),
    "documents and summaries": _two("document", "summary", "{}\n\nSummary:", " "),
    "dialogues and summaries": _two("dialogue", "summary", "{}\n\nSummary:", " "),
    "texts with a label in words": Made(
        [{"text": "a fine oak", "label": 1, "label_text": "positive"}],
        "a fine oak\nLabel:| positive",
    ),
    "problem and solution": _two("problem", "solution"),
    "problem and generated_solution": _two("problem", "generated_solution"),
    "query and response": _two("query", "response"),
    "instruction and output": _two("instruction", "output"),
    "instruction and response": _two("instruction", "response"),
    "prompt and completion": _two("prompt", "completion"),
    "prompt and response": _two("prompt", "response"),
    "questions and answers": _two("question", "answer", "Question: {}\nAnswer:", " "),
    "input and output": _two("input", "output"),
    "inputs and targets": _two("inputs", "targets"),
    "input and target": _two("input", "target"),
    "source and target": _two("source", "target"),
    "texts": Made([{"text": "An oak stands."}], "|An oak stands."),
    "texts whose last word is asked for": Made([{"text": "An oak stands."}], "|An oak stands."),
    "texts with a number for a label": Made(
        [{"text": "a fine oak", "label": 1}],
        "a fine oak\nThis review is| positive",
        (" negative", " positive"),
        1,
    ),
    "sentences with a number for a label": Made(
        [{"sentence": "a fine oak", "label": 0}],
        "a fine oak\nThis review is| negative",
        (" negative", " positive"),
    ),
    "contents": Made([{"content": "x = 1\n"}], "|x = 1\n"),
}
