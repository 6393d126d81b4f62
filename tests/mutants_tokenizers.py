"""Bugs in the tokenizers of Hugging Face folders, in the form of mutants.py."""

# ruff: noqa: E501

CHECK = ("folder_tokenizers", {})
JSON, GROWTH = "tokenizers.json_tokenizer", "tokenizers.growth"

FORMAT = "tokenizers.chat_format"
CHATS = ("chats", {})
ANSWERS = "tokenizers.chat_answers"
LEARNED = ("learned_answers", {})

MUTANTS_OF_TOKENIZERS = {
    "tokens keep their names in the template": (
        FORMAT,
        "return self._hidden(self.source), {**self._hidden_variables(), **variables, **given}",
        "return self.source, {**self._variables, **variables, **given}",
        CHATS,
    ),
    "a chat is read by the tokenizer and not by its twin": (
        FORMAT,
        "tokenizer = self.tokenizer if allow_special else self._twin",
        "tokenizer = self.tokenizer",
        CHATS,
    ),
    "merges still make the tokens": (
        "tokenizers.secret_names",
        "if not {a, b, a + b} & names.keys()",
        "if True",
        CHATS,
    ),
    "secret names are accepted in texts": (FORMAT, "    if found:\n", "    if False:\n", CHATS),
    "tokens from pieces are accepted": (
        FORMAT,
        "if isinstance(found, UserError) or not np.array_equal(self.encode_rendered(found).ids, ids):",
        "if False:",
        CHATS,
    ),
    "what follows an answer is learned": (
        ANSWERS,
        "return ends[-1] if ends else len(text)",
        "return len(text)",
        LEARNED,
    ),
    "a question is learned": (ANSWERS, "spans.append((start, end))", "spans.append((0, end))", LEARNED),
    "the first answer is not learned": (ANSWERS, "in ANSWERING and i > 0", "in ANSWERING and i > 1", LEARNED),
    "a chat is one example an answer": (
        ANSWERS,
        "if text.startswith(done.text[:end])",
        "if text == done.text",
        LEARNED,
    ),
    "bos taken for eos": (
        JSON,
        "return encoding.ids[: of_text[0]], encoding.ids[of_text[-1] + 1 :]",
        "return [], encoding.ids[: of_text[0]]",
        CHECK,
    ),
    "an empty text has ends of its own": (
        JSON,
        "encoding = self._library.encode(text)",
        'encoding = self._library.encode("")',
        CHECK,
    ),
    "growth known in advance is accepted": (GROWTH, "if normalizer * pre_tokenizer > HOPELESS", "if False", CHECK),
    "measured growth is accepted": (GROWTH, "if total > allowed:", "if False:", CHECK),
    "do_lower_case is ignored": (
        "tokenizers.layouts",
        'lowercase=settings.flag("do_lower_case", True)',
        "lowercase=True",
        CHECK,
    ),
    "the first unknown id is read": (
        "inference.batching",
        "if largest >= vocab_size:",
        "if largest > vocab_size:",
        CHECK,
    ),
}
