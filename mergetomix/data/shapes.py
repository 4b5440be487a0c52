"""The usual shapes of public datasets, and which of them some rows have.

The first that fits is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergetomix.data.shape import (
    Shape,
    is_chat,
    is_key,
    is_mapping,
    is_number,
    is_sharegpt,
    is_text,
    is_texts,
    is_transcript,
    is_truth,
    is_word,
)
from mergetomix.data.tables import Row

NUM_LOOKED_AT = 20
"""Rows that a shape is told from."""
CHOICE = {"score": "choice"}
BESIDE = (
    frozenset({"context", "contexts", "passage", "paragraph", "article", "story", "document"})
    | {"support", "evidence", "facts", "options", "choices", "A", "B", "label", "labels"}
    | {"history", "chosen", "rejected", "image", "audio", "table"}
)
"""Columns that a question, an instruction or a pair is not asked without."""
MORE = (
    BESIDE
    | {"question", "answer", "answers", "prompt", "completion", "response", "output", "target"}
    | {"targets", "inputs", "summary", "intent", "sentiment", "emotion", "query", "label_text"}
    | {"coarse_label", "fine_label", "class", "rating", "stars", "role", "highlights", "code"}
    | {"translation", "sentence1", "sentence2", "hypothesis", "premise"}
)
"""Columns that say that a text is a part of something else."""
ASKED = "Question: {question}\nAnswer:"
WORDS = {"score": "generate", "metric": "f1", "max_new_tokens": 32}


def _pair(prompt: str, completion: str, *names: str) -> Shape:
    """Returns the shape of rows whose prompt and answer are two columns."""
    lines = {"prompt": f"{{{prompt}}}\n", "completion": completion}
    return Shape(
        f"{prompt} and {completion}",
        {prompt: is_text, completion: is_text},
        lines,
        names=names,
        without=(BESIDE | {"system", "system_prompt"}) - {prompt, completion},
    )


SHAPES: tuple[Shape, ...] = (
    # --- preference pairs
    Shape(
        "preferred replies to a prompt",
        {"prompt": lambda value: is_text(value) or is_chat(value), "chosen": is_chat},
        {"prompt": "prompt", "chosen": "chosen"},
        CHOICE,
        ("HuggingFaceH4/ultrafeedback_binarized",),
        {"rejected": "rejected"},
    ),
    Shape(
        "preferred chats",
        {"chosen": is_chat, "rejected": is_chat},
        {"chosen": "chosen"},
        CHOICE,
        ("mlabonne/orpo-dpo-mix-40k",),
        {"rejected": "rejected"},
    ),
    Shape(
        "preferred transcripts",
        {"chosen": is_transcript, "rejected": is_transcript},
        {"chosen": "chosen"},
        CHOICE,
        ("Anthropic/hh-rlhf",),
        {"rejected": "rejected"},
    ),
    Shape(
        "preferred answers",
        {"prompt": is_text, "chosen": is_text, "rejected": is_text},
        {"prompt": "{prompt}\n", "chosen": "chosen"},
        CHOICE,
        only_target={"rejected": "rejected"},
    ),
    Shape(
        "preferred answers to questions",
        {"system": is_text, "question": is_text, "chosen": is_text, "rejected": is_text},
        {
            "prompt": "{% if system %}\n{{ system }}\n\n{% endif %}\n{{ question }}\n",
            "chosen": "chosen",
        },
        CHOICE,
        ("Intel/orca_dpo_pairs",),
        {"rejected": "rejected"},
    ),
    # --- chats
    Shape(
        "chats",
        {"messages": is_chat},
        {"messages": "messages"},
        names=(
            "HuggingFaceH4/ultrachat_200k",
            "HuggingFaceH4/no_robots",
            "allenai/tulu-3-sft-mixture",
            "HuggingFaceTB/smoltalk",
            "AI-MO/NuminaMath-CoT",
        ),
    ),
    Shape(
        "chats in the style of ShareGPT",
        {"conversations": is_sharegpt},
        {"messages": "conversations"},
        names=("teknium/OpenHermes-2.5", "Open-Orca/SlimOrca"),
    ),
    Shape(
        "a conversation",
        {"conversation": is_chat},
        {"messages": "conversation"},
        names=("lmsys/lmsys-chat-1m",),
    ),
    Shape("conversations", {"conversations": is_chat}, {"messages": "conversations"}),
    Shape(
        "prompts and completions of messages",
        {"prompt": is_chat, "completion": is_chat},
        {"prompt": "prompt", "completion": "completion"},
        without=frozenset({"label"}),
    ),
    # --- multiple choice
    Shape(
        "options with labels",
        {"question": is_text, "choices.text": is_texts, "answerKey": is_key},
        {"prompt": ASKED, "options": "choices", "answer": "answerKey"},
        CHOICE,
        ("allenai/ai2_arc", "tau/commonsense_qa"),
    ),
    Shape(
        "stems with labelled options",
        {"question_stem": is_text, "choices.text": is_texts, "answerKey": is_key},
        {
            "prompt": "Question: {question_stem}\nAnswer:",
            "options": "choices",
            "answer": "answerKey",
        },
        CHOICE,
        ("allenai/openbookqa",),
    ),
    Shape(
        "options by place",
        {"question": is_text, "choices": is_texts, "answer": is_key},
        {"prompt": ASKED, "options": "choices", "answer": "answer"},
        CHOICE,
        ("cais/mmlu",),
    ),
    Shape(
        "a passage and options",
        {"article": is_text, "question": is_text, "options": is_texts, "answer": is_key},
        {
            "prompt": "{article}\n\nQuestion: {question}\nAnswer:",
            "options": "options",
            "answer": "answer",
        },
        CHOICE,
        ("ehovy/race",),
    ),
    Shape(
        "options that begin with a letter",
        {"question": is_text, "options": is_texts, "correct": is_key},
        {"prompt": ASKED, "options": "options", "answer": "correct"},
        CHOICE,
        ("deepmind/aqua_rat",),
    ),
    Shape(
        "a question and options",
        {"question": is_text, "options": is_texts, "answer": is_key},
        {"prompt": ASKED, "options": "options", "answer": "answer"},
        CHOICE,
        ("TIGER-Lab/MMLU-Pro",),
        without=BESIDE - {"options"},
    ),
    Shape(
        "options in columns by their letters",
        {"question": is_text, "A": is_text, "B": is_text, "C": is_text, "D": is_text},
        {"prompt": ASKED, "options": ["{A}", "{B}", "{C}", "{D}"], "answer": "answer"},
        CHOICE,
        ("ceval/ceval-exam",),
        without=frozenset({"E", "context", "passage"}),
    ),
    Shape(
        "options by their letters",
        {"question": is_text, "options": is_mapping, "answer_idx": is_key},
        {"prompt": ASKED, "options": "options", "answer": "answer_idx"},
        CHOICE,
        ("GBaker/MedQA-USMLE-4-options",),
    ),
    Shape(
        "endings",
        {"ctx": is_text, "endings": is_texts, "label": is_key},
        {"prompt": "ctx", "options": "endings", "answer": "label"},
        CHOICE,
        ("Rowan/hellaswag",),
    ),
    Shape(
        "options marked true or false",
        {"question": is_text, "mc1_targets.choices": is_texts},
        {"prompt": ASKED, "options": "mc1_targets.choices", "answer": "mc1_targets.labels"},
        CHOICE,
        ("truthfulqa/truthful_qa (multiple_choice)",),
    ),
    Shape(
        "a gap and two words",
        {"sentence": is_text, "option1": is_text, "option2": is_text, "answer": is_key},
        {
            "prompt": "{sentence}\nThe word in the gap is",
            "options": ["{option1}", "{option2}"],
            "answer": "answer",
            "answer_from": 1,
        },
        CHOICE,
        ("allenai/winogrande",),
    ),
    Shape(
        "a goal and two ways",
        {"goal": is_text, "sol1": is_text, "sol2": is_text, "label": is_key},
        {
            "prompt": "Goal: {goal}\nAnswer:",
            "options": ["{sol1}", "{sol2}"],
            "answer": "label",
            "answer_from": 0,
        },
        CHOICE,
        ("ybisk/piqa",),
    ),
    Shape(
        "three answers in three columns",
        {"context": is_text, "question": is_text, "answerA": is_text, "label": is_key},
        {
            "prompt": "{context}\nQuestion: {question}\nAnswer:",
            "options": ["{answerA}", "{answerB}", "{answerC}"],
            "answer": "label",
            "answer_from": 1,
        },
        CHOICE,
        ("allenai/social_i_qa",),
    ),
    Shape(
        "four answers in four columns",
        {"question": is_text, "opa": is_text, "opd": is_text, "cop": is_key},
        {
            "prompt": ASKED,
            "options": ["{opa}", "{opb}", "{opc}", "{opd}"],
            "answer": "cop",
            "answer_from": 0,
        },
        CHOICE,
        ("openlifescienceai/medmcqa",),
    ),
    Shape(
        "a cause or an effect",
        {"premise": is_text, "choice1": is_text, "choice2": is_text, "label": is_key},
        {
            "prompt": "{premise}\nThe {question} was:",
            "options": ["{choice1}", "{choice2}"],
            "answer": "label",
            "answer_from": 0,
        },
        CHOICE,
        ("aps/super_glue (copa)",),
    ),
    Shape(
        "an answer and distractors",
        {"question": is_text, "correct_answer": is_text, "distractor1": is_text},
        {"prompt": ASKED, "completion": " {correct_answer}"},
        CHOICE,
        ("allenai/sciq",),
        {
            "completion": "correct_answer",
            "options": ["{correct_answer}", "{distractor1}", "{distractor2}", "{distractor3}"],
        },
    ),
    Shape(
        "yes or no",
        {"question": is_text, "passage": is_text, "answer": is_truth},
        {
            "prompt": "{passage}\nQuestion: {question}?\nAnswer:",
            "options": ["no", "yes"],
            "answer": "answer",
        },
        CHOICE,
        ("google/boolq",),
    ),
    Shape(
        "yes or no by label",
        {"question": is_text, "passage": is_text, "label": is_number},
        {
            "prompt": "{passage}\nQuestion: {question}?\nAnswer:",
            "options": ["no", "yes"],
            "answer": "label",
            "answer_from": 0,
        },
        CHOICE,
        ("aps/super_glue (boolq)",),
    ),
    Shape(
        "inference",
        {"premise": is_text, "hypothesis": is_text, "label": is_number},
        {
            "prompt": "Premise: {premise}\nHypothesis: {hypothesis}\nThis is",
            "answer": "label",
            "answer_map": {"0": "entailment", "1": "neutral", "2": "contradiction"},
        },
        CHOICE,
        ("nyu-mll/glue (mnli)", "stanfordnlp/snli", "facebook/anli", "facebook/xnli"),
    ),
    Shape(
        "inference in words",
        {"premise": is_text, "hypothesis": is_text, "label": is_word},
        {
            "prompt": "Premise: {premise}\nHypothesis: {hypothesis}\nThis is",
            "completion": " {label}",
        },
        names=("allenai/scitail (tsv_format)",),
    ),
    Shape(
        "paraphrases",
        {"sentence1": is_text, "sentence2": is_text, "label": is_number},
        {
            "prompt": "{sentence1}\n{sentence2}\nDo both say the same?",
            "options": ["no", "yes"],
            "answer": "label",
            "answer_from": 0,
        },
        CHOICE,
        ("nyu-mll/glue (mrpc)", "google-research-datasets/paws"),
        without=frozenset({"word", "question", "span1_text"}),
    ),
    # --- questions
    Shape(
        "answers within a passage",
        {"context": is_text, "question": is_text, "answers.text": is_texts},
        {
            "prompt": "{context}\n\nQuestion: {question}\nAnswer:",
            "completion": " {answers.text[0]}",
        },
        WORDS,
        ("rajpurkar/squad", "rajpurkar/squad_v2"),
        {"completion": "answers.text"},
    ),
    *(
        Shape(
            f"a question about a {place}",
            {place: is_text, "question": is_text, "answer": is_word},
            {
                "prompt": f"{{{place}}}\n\nQuestion: {{question}}\nAnswer:",
                "completion": " {answer}",
            },
            without=BESIDE - {place},
        )
        for place in ("context", "passage")
    ),
    *(
        Shape(
            "several right answers" + ("" if key == "answer" else f" ({key})"),
            {"question": is_text, key: is_texts},
            {"prompt": ASKED, "completion": f" {{{key}[0]}}"},
            WORDS,
            names,
            {"completion": key},
            without=BESIDE,
        )
        for key, names in (
            ("answer", ("google-research-datasets/nq_open",)),
            ("answers", ("stanfordnlp/web_questions",)),
        )
    ),
    Shape(
        "an answer and its aliases",
        {"question": is_text, "answer.value": is_text, "answer.aliases": is_texts},
        {"prompt": ASKED, "completion": " {answer.value}"},
        WORDS,
        ("mandarjoshi/trivia_qa (rc.nocontext)",),
        {"completion": "answer.aliases"},
    ),
    Shape(
        "word problems",
        {"Body": is_text, "Question": is_text, "Equation": is_text},
        {"prompt": "{Body} {Question}\nAnswer:", "completion": " {Answer}"},
        {"score": "generate", "metric": "number", "max_new_tokens": 32},
        ("ChilleD/SVAMP",),
    ),
    # --- instructions
    Shape(
        "instructions with an input",
        {"instruction": is_text, "input": is_text, "output": is_text},
        {
            "prompt": "{{ instruction }}\n{% if input %}\n{{ input }}\n{% endif %}\n",
            "completion": "output",
        },
        names=("tatsu-lab/alpaca", "yahma/alpaca-cleaned", "sahil2801/CodeAlpaca-20k"),
    ),
    Shape(
        "instructions with a context",
        {"instruction": is_text, "context": is_text, "response": is_text},
        {
            "prompt": "{% if context %}\n{{ context }}\n\n{% endif %}\n{{ instruction }}\n",
            "completion": "response",
        },
        names=("databricks/databricks-dolly-15k",),
    ),
    Shape(
        "questions with a system prompt",
        {"system_prompt": is_text, "question": is_text, "response": is_text},
        {
            "prompt": "{% if system_prompt %}\n{{ system_prompt }}\n\n{% endif %}\n"
            "{{ question }}\n",
            "completion": "response",
        },
        names=("Open-Orca/OpenOrca",),
    ),
    # --- code
    Shape(
        "functions to complete",
        {"prompt": is_text, "canonical_solution": is_text},
        {"prompt": "prompt", "completion": "canonical_solution"},
        names=("openai/openai_humaneval",),
    ),
    Shape(
        "tasks and code",
        {"text": is_text, "code": is_text},
        {"prompt": "{text}\n", "completion": "code"},
        names=("google-research-datasets/mbpp",),
    ),
    Shape(
        "prompts and code",
        {"prompt": is_text, "code": is_text},
        {"prompt": "{prompt}\n", "completion": "code"},
        names=("google-research-datasets/mbpp (sanitized)",),
    ),
    # --- from one text to another
    Shape(
        "articles and highlights",
        {"article": is_text, "highlights": is_text},
        {"prompt": "{article}\n\nSummary:", "completion": " {highlights}"},
        names=("abisee/cnn_dailymail",),
    ),
    Shape(
        "documents and summaries",
        {"document": is_text, "summary": is_text},
        {"prompt": "{document}\n\nSummary:", "completion": " {summary}"},
        names=("EdinburghNLP/xsum",),
    ),
    Shape(
        "dialogues and summaries",
        {"dialogue": is_text, "summary": is_text},
        {"prompt": "{dialogue}\n\nSummary:", "completion": " {summary}"},
        names=("knkarthick/samsum", "knkarthick/dialogsum"),
    ),
    Shape(
        "texts with a label in words",
        {"text": is_text, "label_text": is_text},
        {"prompt": "{text}\nLabel:", "completion": " {label_text}"},
        names=("SetFit/sst2", "SetFit/20_newsgroups", "mteb/banking77"),
    ),
    _pair("problem", "solution", "HuggingFaceH4/MATH-500", "EleutherAI/hendrycks_math"),
    _pair("problem", "generated_solution", "nvidia/OpenMathInstruct-2"),
    _pair("query", "response", "meta-math/MetaMathQA"),
    _pair("instruction", "output", "TIGER-Lab/MathInstruct"),
    _pair("instruction", "response"),
    _pair("prompt", "completion", "trl-lib/tldr"),
    _pair("prompt", "response"),
    _pair("inputs", "targets", "CohereLabs/aya_dataset", "bigscience/xP3"),
    _pair("input", "target"),
    Shape(
        "questions and answers",
        {"question": is_text, "answer": is_text},
        {"prompt": ASKED, "completion": " {answer}"},
        names=("openai/gsm8k", "microsoft/orca-math-word-problems-200k"),
        without=BESIDE,
    ),
    _pair("input", "output"),
    _pair("source", "target"),
    # --- texts
    Shape(
        "texts",
        {"text": is_text},
        {"text": "text"},
        names=(
            "Salesforce/wikitext",
            "roneneldan/TinyStories",
            "HuggingFaceFW/fineweb",
        ),
        without=MORE,
    ),
    Shape(
        "texts whose last word is asked for",
        {"text": is_text},
        {"text": "text"},
        {"score": "loss", "last_word": True},
        ("EleutherAI/lambada_openai",),
        is_told=False,
    ),
    Shape(
        "texts with a number for a label",
        {"text": is_text, "label": is_number},
        {
            "prompt": "{text}\nThis review is",
            "answer": "label",
            "answer_map": {"0": "negative", "1": "positive"},
        },
        CHOICE,
        ("stanfordnlp/imdb", "cornell-movie-review-data/rotten_tomatoes"),
        is_told=False,
    ),
    Shape(
        "sentences with a number for a label",
        {"sentence": is_text, "label": is_number},
        {
            "prompt": "{sentence}\nThis review is",
            "answer": "label",
            "answer_map": {"0": "negative", "1": "positive"},
        },
        CHOICE,
        ("stanfordnlp/sst2",),
        is_told=False,
    ),
    Shape(
        "contents",
        {"content": is_text},
        {"text": "content"},
        names=("bigcode/the-stack-smol",),
        without=MORE,
    ),
)


def recognised(rows: Sequence[Row]) -> Shape | None:
    """Returns the shape of some rows; None where they have none of the usual ones."""
    some = rows[:NUM_LOOKED_AT]
    found = next((shape for shape in SHAPES if shape.is_told and shape.fits(some)), None)
    return found or _translation(some)


def _translation(rows: Sequence[Row]) -> Shape | None:
    """Returns the shape of texts in two languages, whichever they are."""
    first = rows[0].get("translation") if rows else None
    if not isinstance(first, Mapping) or len(first) != 2:
        return None
    one, other = map(str, first)
    places = {f"translation.{key}": is_text for key in (one, other)}
    lines = {"prompt": f"{{translation.{one}}}\n", "completion": f"translation.{other}"}
    found = Shape(f"translations from {one} to {other}", places, lines)
    return found if found.fits(rows) else None
