"""Bugs in the tokenizers of Hugging Face folders, in the form of mutants.py."""

# ruff: noqa: E501

CHECK = ("folder_tokenizers", {})
JSON, GROWTH = "tokenizers.json_tokenizer", "tokenizers.growth"

MUTANTS_OF_TOKENIZERS = {
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
