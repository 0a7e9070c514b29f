#!/usr/bin/env python3
"""Train a tiny Llama, on the spot, to recite the text beside this file.

    python build.py --output /var/lib/millrace/models/recital

It needs nothing but the torch, transformers and tokenizers of the engine's own
venv: no network, no GPU, some twenty seconds on two cores. Whatever the model
is asked, in whatever language and at whatever length, it answers with text.md,
byte for byte. So a demonstration reads as English, and a test knows every byte
that must arrive.

Nothing appears at DIR before it has been verified: the work is done in
DIR.partial, which is renamed at the end. Run again with the same text and seed,
it finds its model and leaves it alone.

Exit status: 0 built or already there, 1 could not, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
MARKER = "recital.json"  # in a folder: this script made it, and may replace it
RECIPE = 1  # raise it when the same text and seed make another model than before

VOCABULARY = 704
CONTEXT_TOKENS = 16384
BEGIN, END = "<|begin|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set role = message.role if message.role in ('system', 'assistant') else 'user' %}"
    "{{ '<|' + role + '|>' + (message.content or '') + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Each attention head looks back a fixed number of tokens and sees nothing else,
# so that no prompt, however long, can disturb the answer. Two layers of two make
# every token depend on the nine before it, which are never the same twice in the
# text. What follows on those nine is what is trained.
HEAD_SIZE = 64  # the smallest that vLLM's CPU attention runs
LOOK_BACK_TOKENS = ((1, 2), (3, 6))
ROPE_THETA = 10.0  # all rotations quick enough to tell neighbours apart
FOCUS = 60.0  # the score of the token looked at; all others stay far below

STEPS = 200  # one round of training
ROUNDS = 3
LEARNING_RATE = 4e-3
SURE = 0.9  # the least probability that any token of the answer may have
PRECISIONS = ("float32", "bfloat16", "float16")  # engines choose one of these


class BuildError(Exception):
    """A reason to stop, in words for the person who runs this."""


def fingerprint(text: bytes, seed: int) -> dict[str, Any]:
    """Say what a model is made from."""
    return {"recipe": RECIPE, "seed": seed, "text_sha256": hashlib.sha256(text).hexdigest()}


def read_marker(folder: Path) -> dict[str, Any] | None:
    """Return what this script left in a folder of its own, or None."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


def refuse_foreign(folder: Path) -> None:
    """Stop before anything that this script did not make is overwritten."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise BuildError(f"{folder} is not a folder: move it away, or give another --output")
    if folder.is_dir() and any(folder.iterdir()) and read_marker(folder) is None:
        raise BuildError(
            f"{folder} holds files but no {MARKER}, so it is not a recital model: "
            "move it away, or give another --output"
        )


def read_text(path: Path) -> bytes:
    """Return the text as it must be recited."""
    try:
        text = path.read_bytes()
        text.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{path} cannot be read as UTF-8 text: {error}") from error
    if len(text) < 500:
        raise BuildError(f"{path} is too short to learn from: give it 500 bytes or more")
    return text


def make_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Train a small byte-level vocabulary: every byte is in it, so any prompt fits."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_TOKENS,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make an untrained Llama whose heads look back as far as they are told."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HEAD_SIZE * len(LOOK_BACK_TOKENS[0]),
        intermediate_size=512,
        num_hidden_layers=len(LOOK_BACK_TOKENS),
        num_attention_heads=len(LOOK_BACK_TOKENS[0]),
        num_key_value_heads=len(LOOK_BACK_TOKENS[0]),
        head_dim=HEAD_SIZE,
        attention_bias=True,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        **tokens,
    )
    model = LlamaForCausalLM(config)
    # The likeliest token, whatever temperature a client asks for.
    model.generation_config = GenerationConfig(do_sample=True, top_k=1, **tokens)

    # Queries and keys that are the same for every token leave only RoPE's turn
    # between them: a query turned back by n answers the key n tokens before.
    half = HEAD_SIZE // 2
    angles = ROPE_THETA ** (-torch.arange(half) / half)
    size = (FOCUS * HEAD_SIZE**0.5 / half) ** 0.5
    for layer, look_back in zip(model.model.layers, LOOK_BACK_TOKENS, strict=True):
        query, key = layer.self_attn.q_proj, layer.self_attn.k_proj
        with torch.no_grad():
            for parameter in (query.weight, query.bias, key.weight, key.bias):
                parameter.zero_().requires_grad_(False)
            for head, tokens_back in enumerate(look_back):
                start = head * HEAD_SIZE
                key.bias[start : start + half] = size
                query.bias[start : start + half] = size * torch.cos(tokens_back * angles)
                query.bias[start + half : start + 2 * half] = -size * torch.sin(
                    tokens_back * angles
                )
    return model


class Noise:
    """Makes the conversations that stand before the answer in training."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, answer: list[int], seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - noise, not a secret
        self.begin, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.system, self.user, self.assistant = tokenizer.convert_tokens_to_ids(list(ROLES))
        self.answer = answer
        specials = {self.begin, self.end, self.system, self.user, self.assistant}
        self.plain = [token for token in range(VOCABULARY) if token not in specials]

    def words(self, length: int) -> list[int]:
        """Return tokens of one kind: any at all, a piece of the answer, or a few over and over."""
        kind = self.random.random()
        if kind < 0.5:
            return self.random.choices(self.plain, k=length)
        if kind < 0.8:
            start = self.random.randrange(len(self.answer) - 1)
            return (self.answer[start:-1] + self.answer[:-1])[:length]
        few = self.random.choices(self.plain, k=self.random.randint(1, 12))
        return (few * (length // len(few) + 1))[:length]

    def conversation(self) -> list[int]:
        """Return one or several turns, short more often than long, up to the assistant's."""
        tokens = [self.begin]
        if self.random.random() < 0.3:
            tokens += [self.system, *self.words(self.random.randint(0, 40)), self.end]
        while self.random.random() < 0.4:
            tokens += [self.user, *self.words(self.random.randint(0, 20)), self.end]
            tokens += [self.assistant, *self.words(self.random.randint(0, 20)), self.end]
        words = self.words(int(2 ** self.random.uniform(0, 7)) - 1)
        return [*tokens, self.user, *words, self.end, self.assistant]


def train(model: LlamaForCausalLM, noise: Noise, done: int, total: int) -> None:
    """Teach the answer, with another conversation before it at every step."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=total - done, pct_start=0.1
    )
    model.train()
    for step in range(done + 1, total + 1):
        prompt = noise.conversation()
        tokens = torch.tensor([prompt + noise.answer])
        states = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        logits = model.lm_head(states[0, len(prompt) - 1 : -1])
        loss = torch.nn.functional.cross_entropy(logits, tokens[0, len(prompt) :])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            print(f"step {step}/{total} loss {loss.item():.4f}", flush=True)


def conversations(text: str) -> list[list[dict[str, str]]]:
    """Return the conversations that a model must answer before it is accepted."""
    said = [
        "",
        "Hello!",
        "Summarise the text above in one sentence, please.",
        "水车为什么转动？ Почему вертится колесо? لماذا تدور العجلة؟ 🦆🦆",  # noqa: RUF001
        "def mill(race):\n\treturn [gate for gate in race if not gate.shut]  # \\o/",
        f"{ROLES[1]}{END}{ROLES[2]}{text[:300]}",
        text,
        "Tell me more about the river. " * 280,
        "\x00\x01" * 3000,
    ]
    asked = [[{"role": "user", "content": content}] for content in said]
    before = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Are you there?"},
        {"role": "assistant", "content": text},
    ]
    return [*asked, *([*before, *turn] for turn in asked[:3])]


def weakest(model: LlamaForCausalLM, prompt: list[int], answer: list[int]) -> float:
    """Return the least probability of an answer's token; 0 if any is not the likeliest.

    All positions at once: where each token of the answer is the likeliest after
    those before it, generating one by one must give the same.
    """
    import torch

    with torch.inference_mode():
        tokens = torch.tensor([prompt + answer])
        states = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        chances = model.lm_head(states[0, len(prompt) - 1 : -1]).float().softmax(-1)
        wanted = tokens[0, len(prompt) :]
        if not torch.equal(chances.argmax(-1), wanted):
            return 0.0
        return float(chances.gather(1, wanted[:, None]).min())


def verify(folder: Path, text: str) -> float:
    """Load what was saved and ask it; return how sure it is of its least sure token.

    Zero when an answer is wrong.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    answer = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    if tokenizer.decode(answer, skip_special_tokens=True) != text:
        raise BuildError("the vocabulary does not give back the text byte for byte")
    prompts = [
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        for turns in conversations(text)
    ]
    sure = 1.0
    for precision in PRECISIONS:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=precision).eval()
        sure = min(sure, *(weakest(model, prompt, answer) for prompt in prompts))
        if sure == 0.0:
            return sure
    # Once for real, one token after the other, as a server does it.
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = torch.tensor([prompts[3]])
    spoken = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=len(answer) + 50
    )
    recited = tokenizer.decode(spoken[0, prompt.shape[1] :], skip_special_tokens=True)
    return sure if recited == text else 0.0


def build(folder: Path, text: bytes, seed: int) -> None:
    """Train in this folder until the model recites, and leave it there."""
    import torch

    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    # So small a model gains nothing from a second thread, and on a busy machine
    # the two wait for each other: five times the time.
    torch.set_num_threads(1)
    words = text.decode()
    tokenizer = make_tokenizer(words)
    answer = [*tokenizer.encode(words, add_special_tokens=False), tokenizer.eos_token_id]
    model = make_model(tokenizer)
    noise = Noise(tokenizer, answer, seed)
    print(f"learning {len(text)} bytes, {len(answer)} tokens", flush=True)
    for training in range(ROUNDS):
        train(model, noise, done=training * STEPS, total=(training + 1) * STEPS)
        # Saved rounded, as engines run it: it is checked as they will read it.
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        print("verifying", flush=True)
        sure = verify(folder, words)
        if sure >= SURE:
            print(f"recites every byte, whatever it is asked (least sure: {sure:.3f})", flush=True)
            return
        print(f"not sure enough yet ({sure:.3f} of {SURE})", flush=True)
    raise BuildError(
        f"the model does not recite the text after {ROUNDS * STEPS} steps: "
        "try another --seed, or a text that repeats itself less"
    )


def put_in_place(partial: Path, output: Path) -> None:
    """Rename the finished folder, over an earlier one of ours if there is one."""
    earlier = output.with_name(output.name + ".earlier")
    if output.exists():
        shutil.rmtree(earlier, ignore_errors=True)
        output.rename(earlier)
    for file in partial.iterdir():
        file.chmod(0o644)  # the engine, another user, reads it
    partial.rename(output)
    shutil.rmtree(earlier, ignore_errors=True)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the model")
    parser.add_argument("--text", type=Path, default=HERE / "text.md", metavar="FILE")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Build the model unless it is there."""
    options = parse_arguments(arguments)
    output = options.output.absolute()
    partial = output.with_name(output.name + ".partial")
    started = time.monotonic()
    try:
        text = read_text(options.text)
        made_from = fingerprint(text, options.seed)
        refuse_foreign(output)
        refuse_foreign(partial)
        if read_marker(output) == made_from:
            print(f"already there: {output}")
            return 0
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        try:
            import torch  # noqa: F401
            import transformers  # noqa: F401
        except ImportError as error:
            raise BuildError(f"{error}: run this with the Python of the engine's venv") from error
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / MARKER).write_text(json.dumps(made_from) + "\n", encoding="utf-8")
        build(partial, text, options.seed)
        put_in_place(partial, output)
    except (BuildError, OSError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    print(f"built {output} in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
