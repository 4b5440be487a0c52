"""Encoding, losses and generation against references: transformers on one example at a time."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mergetomix.data.examples import Example
from mergetomix.errors import DataError, ModelError
from mergetomix.experts.deltas import params, read_delta
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.models.causal_lm.sequences import IGNORE, Encoded
from mergetomix.models.encoding import content, take_tokens
from mergetomix.models.pretrained import pick_device
from mergetomix.sections.base import Base
from mergetomix.sections.train import Lora
from mergetomix.store.store import Store

WHERE = "datasets.x"
BaseOf = Callable[[str], str]
LONG = " ".join(f"{i} cats sat on the mat" for i in range(40))


def scored(sequence: Encoded) -> list[int]:
    return [t for t, label in zip(sequence.ids, sequence.labels, strict=True) if label != IGNORE]


def examples(count: int, seed: int = 0) -> list[Example]:
    """Prompts and completions of many lengths."""
    draw, words = random.Random(seed), " ".join(tiny.TEXTS).split()
    return tiny.pairs(
        *(
            (
                " ".join(draw.choices(words, k=draw.randint(0, 12))),
                " " + " ".join(draw.choices(words, k=draw.randint(1, 9))),
            )
            for _ in range(count)
        )
    )


# --- encoding


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_completion_and_end_token_are_scored_and_nothing_else(base: BaseOf, kind: str) -> None:
    family = tiny.open_base(base(kind))
    (sequence,) = family.encode(tiny.pairs(("the cat sat", " on the mat")), WHERE).sequences
    answer = [*family.tokens(" on the mat"), family.tokenizer.eos_token_id]
    assert scored(sequence) == answer
    assert list(sequence.ids) == family.encoder.start + family.tokens("the cat sat") + answer
    assert sequence.num_scored == len(answer)
    assert family.encoder.start == ([1] if kind == "llama" else [])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_empty_prompt_still_scores_the_whole_completion(base: BaseOf, kind: str) -> None:
    family = tiny.open_base(base(kind))
    (sequence,) = family.encode(tiny.pairs(("", "cat")), WHERE).sequences
    assert sequence.num_scored == len(family.tokens("cat")) + 1
    assert sequence.ids[0] == (1 if kind == "llama" else family.tokenizer.eos_token_id)


def wordy(most: int) -> st.SearchStrategy[str]:
    """Texts of the tokenizer's own words and of any others."""
    words = st.sampled_from(" ".join(tiny.TEXTS).split()) | st.text(min_size=1, max_size=4)
    return st.lists(words, min_size=1, max_size=most).map(" ".join)


@settings(derandomize=True, deadline=None, max_examples=40)
@example("gpt2", 8, [LONG, "cat", "the cat sat on the mat"])
@example("llama", 64, [LONG, "cat"])
@given(
    st.sampled_from(("llama", "gpt2")),
    st.integers(8, 64),
    st.lists(wordy(40), min_size=1, max_size=3),
)
def test_a_text_scores_every_token_but_the_first_once_and_in_order(
    base: BaseOf, kind: str, max_length: int, texts: list[str]
) -> None:
    family = tiny.open_base(base(kind), max_length)
    encoding = family.encode([Example(i, text=text) for i, text in enumerate(texts)], WHERE)
    wholes = [
        [*family.encoder.start, *family.tokens(t), family.tokenizer.eos_token_id] for t in texts
    ]
    assert encoding.num_split == sum(len(whole) > max_length for whole in wholes)
    assert encoding.num_examples == len(texts) and encoding.num_cut == 0
    for i, whole in enumerate(wholes):
        windows = [s for s in encoding.sequences if s.example == i]
        assert [t for s in windows for t in scored(s)] == whole[1:]
        assert sum(s.num_scored for s in windows) == len(whole) - 1
        assert all(len(s.ids) <= max_length and s.labels[0] == IGNORE for s in windows)
        assert windows[0].ids[0] == whole[0]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.sampled_from(("llama", "gpt2")), st.integers(8, 64), wordy(40), wordy(12))
def test_a_pair_too_long_loses_its_prompts_beginning_then_its_answers_end(
    base: BaseOf, kind: str, max_length: int, prompt: str, completion: str
) -> None:
    family = tiny.open_base(base(kind), max_length)
    encoding = family.encode(tiny.pairs((prompt, completion)), WHERE)
    (sequence,) = encoding.sequences
    end = family.tokenizer.eos_token_id
    before, answer = family.encoder.start + family.tokens(prompt), [*family.tokens(completion), end]
    room = max_length - len(answer) - len(family.encoder.start)  # for what the prompt itself says
    said = before[len(family.encoder.start) :][-room:] if room > 0 else []
    cut = [*(family.encoder.start or before[-1:]), *answer][:max_length]
    wanted = [*family.encoder.start, *said, *answer] if said else cut
    assert list(sequence.ids) == wanted
    assert scored(sequence) == answer[: len(scored(sequence))]
    too_long = len(before) + len(answer) > max_length
    assert encoding.num_cut + encoding.num_ended == too_long


def test_a_text_of_exactly_the_limit_is_one_sequence(base: BaseOf) -> None:
    ids = tiny.open_base(base("gpt2")).tokens("the cat sat on the mat and the dog")
    for room, count in ((len(ids) + 2, 1), (len(ids) + 1, 1), (len(ids), 2)):
        family = tiny.open_base(base("gpt2"), room)
        sequences = family.encode(
            [Example(0, text="the cat sat on the mat and the dog")], WHERE
        ).sequences
        assert len(sequences) == count
        assert sum(s.num_scored for s in sequences) == len(ids)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_long_prompt_loses_its_beginning(base: BaseOf, kind: str) -> None:
    family = tiny.open_base(base(kind), 24)
    encoding = family.encode(tiny.pairs((LONG, " and a dog"), ("a", " b")), WHERE)
    cut = encoding.sequences[0]
    answer = [*family.tokens(" and a dog"), family.tokenizer.eos_token_id]
    kept = 24 - len(answer) - len(family.encoder.start)
    assert list(cut.ids) == family.encoder.start + family.tokens(LONG)[-kept:] + answer
    assert scored(cut) == answer
    assert (encoding.num_cut, encoding.num_split) == (1, 0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_completion_that_fills_the_window_is_kept_whole(base: BaseOf, kind: str) -> None:
    probe = tiny.open_base(base(kind))
    answer = [*probe.tokens(" on the mat and a dog"), probe.tokenizer.eos_token_id]
    family = tiny.open_base(base(kind), len(answer) + 1)
    (sequence,) = family.encode(tiny.pairs((LONG, " on the mat and a dog")), WHERE).sequences
    assert scored(sequence) == answer and len(sequence.ids) == family.max_length
    assert list(sequence.ids[:1]) == (probe.encoder.start or probe.tokens(LONG)[-1:])


def test_a_completion_too_long_loses_its_end(family: CausalLM) -> None:
    (sequence,) = (
        tiny.open_base(family.base.path, 12).encode(tiny.pairs(("a", LONG)), WHERE).sequences
    )
    assert len(sequence.ids) == 12 and sequence.ids[0] == 1
    assert (
        scored(sequence) == family.tokens(LONG)[: sequence.num_scored] and sequence.num_scored >= 10
    )


def test_the_models_limit_holds(family: CausalLM) -> None:
    assert tiny.open_base(family.base.path, 1000).max_length == tiny.CONTEXT
    assert tiny.open_base(family.base.path, 10).max_length == 10


def test_tokens_are_those_of_the_whole_text(family: CausalLM) -> None:
    """One over the seam is the answer's, as the model sees no token of half a word."""
    found = family.encode(tiny.pairs(("th", "e cat"), ("dog", " cat")), WHERE)
    one, other = found.sequences
    assert list(one.ids) == [1, *family.tokens("the cat"), 2] and one.ids[1] == one.labels[1]
    assert scored(one) == [*family.tokens("the cat"), 2]
    assert scored(other) == [*family.tokens(" cat"), 2]
    assert found.num_straddling == 1
    (note,) = family.notes({"a": found})
    assert note == "answers begin within a token of their prompt, which is trained on: a 1"


TURNS = (
    ("system", "be kind"),
    ("user", "one plus two"),
    ("assistant", "three"),
    ("user", "why"),
    ("assistant", "it is so"),
)


def test_every_reply_of_a_chat_is_scored_and_nothing_else(base: BaseOf) -> None:
    family = tiny.open_base(base("chat"))
    example = Example(0, messages=TURNS)
    pieces = family.shown(example, WHERE)
    whole = family.tokenizer.apply_chat_template(
        [{"role": r, "content": c} for r, c in TURNS], tokenize=False
    )
    assert "".join(text for text, _ in pieces) == whole
    assert [text for text, trained in pieces if trained] == ["three</s>\n", "it is so</s>\n"]
    (sequence,) = family.encode([example], WHERE).sequences
    assert family.tokenizer.decode(scored(sequence)) == "three</s>\nit is so</s>\n"
    assert family.tokenizer.decode(list(sequence.ids)) == whole


def test_a_chat_ends_with_its_last_reply(base: BaseOf) -> None:
    family = tiny.open_base(base("chat"))
    more = family.shown(Example(0, messages=(*TURNS, ("user", "thanks"))), WHERE)
    assert more == family.shown(Example(0, messages=TURNS), WHERE)
    assert "".join(text for text, _ in more).endswith("it is so</s>\n")


def test_a_long_chat_keeps_its_start_and_its_reply(base: BaseOf) -> None:
    family = tiny.open_base(base("chat"), 40)
    (sequence,) = family.encode(
        [Example(0, messages=(("user", LONG), ("assistant", "three")))], WHERE
    ).sequences
    assert len(sequence.ids) == 40 and sequence.ids[0] == 1
    assert family.tokenizer.decode(scored(sequence)) == "three</s>\n"


def test_a_chat_without_template_names_the_key(family: CausalLM) -> None:
    with pytest.raises(DataError, match=r"^datasets\.x\.messages: .*no chat template"):
        family.encode([Example(0, messages=TURNS)], WHERE)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system turn') }}", "refused row 7 .*: no system turn"),
        (
            "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
            "rewrites earlier turns.*row 7",
        ),
    ],
)
def test_a_chat_template_that_does_not_fit_names_the_key(
    base: BaseOf, template: str, message: str
) -> None:
    family = tiny.open_base(base("chat"))
    family.tokenizer.chat_template = template
    with pytest.raises(DataError, match=rf"^datasets\.x\.messages: .*{message}"):
        family.encode([Example(7, messages=TURNS)], WHERE)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_prompt_leaves_room_for_its_answer(base: BaseOf, kind: str) -> None:
    family = tiny.open_base(base(kind), 40)
    for num_new, most in (
        (0, 40),
        (tiny.CONTEXT - 60, 40),
        (tiny.CONTEXT - 30, 30),
        (tiny.CONTEXT - 4, 4),
    ):
        ids = family.prompt_ids(Example(0, prompt=LONG, completion="x"), WHERE, num_new)
        assert len(ids) == most
        assert ids == family.encoder.start + family.tokens(LONG)[len(family.encoder.start) - most :]
    assert family.prompt_ids(Example(0, completion="x"), WHERE) == (
        family.encoder.start or [family.tokenizer.eos_token_id]
    )


def test_a_chats_prompt_ends_where_the_last_reply_begins(base: BaseOf) -> None:
    family = tiny.open_base(base("chat"))
    text = str(
        family.tokenizer.decode(
            family.prompt_ids(Example(0, messages=(*TURNS, ("user", "thanks"))), WHERE)
        )
    )
    assert text.endswith("<s>user\nwhy</s>\n<s>assistant\n")


def test_take_tokens_stays_within_bounds_and_is_seeded(family: CausalLM) -> None:
    encoding = family.encode(examples(40), WHERE)
    assert (
        take_tokens(encoding, None, 0) is encoding and take_tokens(encoding, 10**6, 0) is encoding
    )
    drawn = [take_tokens(encoding, 200, seed) for seed in range(5)]
    assert all(150 < taken.num_tokens <= 200 for taken in drawn)
    assert len({content(taken.sequences) for taken in drawn}) == 5
    assert take_tokens(encoding, 200, 3) == drawn[3]
    for taken in drawn:
        places = [s.example for s in taken.sequences]
        assert places == sorted(places) and set(taken.sequences) <= set(encoding.sequences)
        assert taken.num_examples == len(set(places))
    assert len(take_tokens(encoding, 1, 0).sequences) == 1


def test_content_knows_ids_labels_and_order() -> None:
    one, other = Encoded((1, 2), (IGNORE, 2), 0), Encoded((1, 2), (IGNORE, IGNORE), 0)
    assert content([one]) == content([Encoded((1, 2), (IGNORE, 2), 0)])
    assert (
        len({content([one]), content([other]), content([one, other]), content([other, one])}) == 4
    )


# --- losses


def test_batches_hold_every_sequence_once_within_the_limit(family: CausalLM) -> None:
    sequences = family.encode(examples(50), WHERE).sequences
    longest = max(len(s.ids) for s in sequences)
    for limit in (1, longest, 3 * longest, 10**6):
        batches = family.batches(sequences, limit)
        assert sorted(row for batch in batches for row in batch.rows) == list(range(50))
        for batch in batches:
            assert len(batch.rows) == 1 or batch.ids.numel() <= limit
            for ids, mask, row in zip(batch.ids, batch.mask, batch.rows, strict=True):
                assert ids[mask.bool()].tolist() == list(sequences[row].ids)
    assert len(family.batches(sequences, 10**6)) == 1 and len(family.batches(sequences, 1)) == 50


@pytest.mark.parametrize("kind", ["llama", "gpt2", "untied"])
def test_losses_equal_the_reference_whatever_the_batch(base: BaseOf, kind: str) -> None:
    family = tiny.open_base(base(kind))
    model = family.load()
    assert not model.training
    sequences = family.encode(examples(12), WHERE).sequences
    want = [tiny.reference_nll(model, s.ids, s.labels) for s in sequences]
    assert max(want) - min(want) > 1
    for limit in (1, 150, 10**6):
        assert family.negative_log_likelihoods(
            model, family.batches(sequences, limit)
        ) == pytest.approx(want, abs=1e-4, rel=1e-5)
    mixed = list(range(12))
    random.Random(1).shuffle(mixed)
    losses = family.negative_log_likelihoods(
        model, family.batches([sequences[i] for i in mixed], 200)
    )
    assert losses == pytest.approx([want[i] for i in mixed], abs=1e-4, rel=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_windows_of_a_text_add_up_to_its_windowed_loss(family: CausalLM) -> None:
    model = family.load()
    sequences = family.encode([Example(0, text=LONG)], WHERE).sequences
    assert len(sequences) > 2
    losses = family.negative_log_likelihoods(model, family.batches(sequences, 200))
    assert math.fsum(losses) == pytest.approx(
        sum(tiny.reference_nll(model, s.ids, s.ids) for s in sequences), rel=1e-5
    )


# --- loading


def test_a_base_that_is_not_there_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"^base\.path: nobody/nothing is neither a folder nor a hub model"
    ):
        tiny.open_base("nobody/nothing")
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(ModelError, match=rf"^base\.path: {tmp_path} does not load"):
        tiny.open_base(str(tmp_path))


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (truncate, "does not load"),
        (lambda folder: (folder / "model.safetensors").unlink(), "does not load"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk"), "does not load"),
        (
            lambda folder: tiny.edit(folder, lambda t: t.pop("model.norm.weight")),
            r"lacks the tensor model\.norm\.weight",
        ),
        (
            lambda folder: tiny.edit(
                folder, lambda t: t.update({"model.norm.weight": torch.ones(3)})
            ),
            r"model\.norm\.weight has the shape \(3,\)",
        ),
    ],
    ids=["truncated", "no weights", "junk", "missing tensor", "misshapen tensor"],
)
def test_a_broken_base_names_the_key(
    family: CausalLM, tmp_path: Path, breakage: Callable[[Path], object], message: str
) -> None:
    folder = Path(shutil.copytree(family.base.path, tmp_path / "base"))
    breakage(folder)
    with pytest.raises(ModelError, match=rf"^base\.path: .*{message}"):
        tiny.open_base(str(folder)).load()


def test_a_broken_tokenizer_names_the_key(family: CausalLM, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(family.base.path, tmp_path / "base"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"^base\.path: "):
        _ = tiny.open_base(str(folder)).tokenizer


def test_a_fine_tune_must_be_safetensors(family: CausalLM, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(family.base.path, tmp_path / "expert"))
    torch.save(family.load().state_dict(), folder / "pytorch_model.bin")
    assert family.load(str(folder)) is not None
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"^base\.path: "):
        family.load(str(folder))


def with_own_code(folder: Path, ran: Path) -> None:
    """Puts code into every place of a fine-tune's folder that transformers and PEFT look at."""
    code = f"open({str(ran)!r}, 'w')\nfrom transformers import *\n"
    code += "class Mine(LlamaForCausalLM): ...\nclass Words(PreTrainedTokenizerFast): ...\n"
    code += "def generate(*a, **k): ...\n"
    (folder / "code.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    maps: dict[str, dict[str, object]] = {
        "config.json": {"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.Mine"},
        "tokenizer_config.json": {"AutoTokenizer": ["code.Words", "code.Words"]},
    }
    for name, own in maps.items():
        values = json.loads((folder / name).read_text()) | {"auto_map": own}
        (folder / name).write_text(json.dumps(values))


@pytest.mark.parametrize("trust", [False, True])
def test_a_fine_tunes_own_code_does_not_run(
    family: CausalLM, tmp_path: Path, trust: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the recipe says of the base: it means the base's code."""
    monkeypatch.chdir(tmp_path)
    base = Path(shutil.copytree(family.base.path, tmp_path / "base"))
    folder = Path(shutil.copytree(base, tmp_path / "expert"))
    tiny.edit(folder, lambda t: t["model.norm.weight"].mul_(1.5))
    with_own_code(folder, tmp_path / "ran")
    # a vocabulary that is equal, in a file with other bytes, so that it is looked at
    words = folder / "tokenizer.json"
    words.write_text(json.dumps(json.loads(words.read_text()), indent=1))
    ours = tiny.open_base(str(base), trust_remote_code=trust)
    delta = read_delta(ours, params(ours.load()), str(folder), "datasets.x.expert")
    assert delta.names() == {"model.norm.weight"}
    assert type(ours.load(str(folder))) is type(ours.load())
    assert type(ours.load_finetune(str(folder))) is type(ours.load())
    assert not (tmp_path / "ran").exists()


def test_a_fine_tune_of_another_kind_is_refused(family: CausalLM, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(family.base.path, tmp_path / "expert"))
    with_own_code(folder, tmp_path / "ran")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "mine"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=r"^datasets\.x\.expert: .* of the type mine, and the base"
    ):
        family.load(str(folder), "datasets.x.expert")
    assert not (tmp_path / "ran").exists()


def test_what_a_fine_tunes_configuration_would_fetch_is_the_bases_to_say(
    family: CausalLM, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(family.base.path, tmp_path / "expert"))
    own: dict[str, object] = {
        "attn_implementation": "evil/kernel@main:fn",
        "_attn_implementation": "evil/kernel",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    }
    config = json.loads((folder / "config.json").read_text()) | own
    (folder / "config.json").write_text(json.dumps(config))
    loaded = family.load(str(folder), "datasets.x.expert")
    assert loaded.config._attn_implementation == family.load().config._attn_implementation
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="holds no JSON object"):
        family.load(str(folder), "datasets.x.expert")


def test_an_experts_weights_lie_in_its_folder(family: CausalLM, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(family.base.path, tmp_path / "expert"))
    index = {"weight_map": {"a": str(folder / "model.safetensors")}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"^datasets\.x\.expert: .*names a file elsewhere"):
        read_delta(family, params(family.load()), str(folder), "datasets.x.expert")


@pytest.mark.parametrize("pattern", [r"([a-z._0-9]+)+!|.*q_proj", "["])
def test_an_adapter_whose_layers_are_a_pattern_that_never_ends(
    family: CausalLM, tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergetomix.bounds import limited

    monkeypatch.setattr(limited.__wrapped__, "__defaults__", (0.3,))
    family.adapted(family.load(), Lora(rank=2)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text()) | {"target_modules": pattern}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError):
        family.load_finetune(str(tmp_path))
    with pytest.raises(ModelError, match=r"^train\.lora\.target_modules: "):
        family.adapted(family.load(), Lora(target_modules=pattern))


def test_an_adapter_imports_nothing(family: CausalLM, tmp_path: Path) -> None:
    """PEFT imports the module that `megatron_core` of an adapter's configuration names."""
    folder, ran = tmp_path / "adapter", tmp_path / "ran"
    adapted = family.adapted(family.load(), Lora(rank=2))
    adapted.save_pretrained(folder)
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"megatron_core": "evil", "megatron_config": {"x": 1}}
    config |= {"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        assert family.load_finetune(str(folder)) is not None
        delta = read_delta(family, params(family.load()), str(folder), "datasets.x.expert")
    assert delta.names()
    assert not ran.exists()


def test_the_key_is_the_content_and_not_the_place(family: CausalLM, tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        key = family.key(store)
        moved = str(shutil.copytree(family.base.path, tmp_path / "moved"))
        assert tiny.open_base(moved).key(store) == key
        changed = tiny.edit(
            shutil.copytree(moved, tmp_path / "changed"),
            lambda t: t["model.norm.weight"][:1].add_(1e-6),
        )
        assert tiny.open_base(changed).key(store) != key
        assert tiny.open_base(moved, dtype="bfloat16").key(store) != key
        chat = Path(shutil.copytree(moved, tmp_path / "chat"))
        (chat / "chat_template.jinja").write_text(tiny.CHAT)
        assert tiny.open_base(str(chat)).key(store) != key


def test_trained_params_are_counted_without_weights(family: CausalLM) -> None:
    assert family.num_saved(None) == sum(p.numel() for p in family.load().parameters())
    sizes = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
    assert family.num_saved(Lora(rank=4)) == 2 * sum(4 * (a + b) for a, b in sizes)


def test_a_tokenizer_without_an_end_token_is_refused(family: CausalLM, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(family.base.path, tmp_path / "base"))
    config = (
        (folder / "tokenizer_config.json")
        .read_text()
        .replace('"eos_token": "</s>"', '"eos_token": null')
    )
    (folder / "tokenizer_config.json").write_text(config)
    with pytest.raises(ModelError, match="no end-of-text token"):
        _ = tiny.open_base(str(folder)).tokenizer


def test_devices(family: CausalLM) -> None:
    assert pick_device("cpu") == "cpu"
    with pytest.raises(ModelError, match=r"^device: must be auto, cpu, cuda or mps, not 'tpu'"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match=r"^device: cuda is not available"):
            CausalLM(Base(path="x"), "cuda", 8, "full")
        assert CausalLM(Base(path=family.base.path), "auto", 8, "full").device in ("cpu", "mps")
