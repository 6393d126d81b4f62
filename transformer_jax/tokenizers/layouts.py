"""Tokenizers by class: BertTokenizer, GPT2Tokenizer, RobertaTokenizer and LlamaTokenizer, as the reference builds them.

A tokenizer of these classes is its vocabulary and the settings of tokenizer_config.json: do_lower_case,
add_prefix_space and so on decide, whatever normalizer tokenizer.json has. Other classes are their tokenizer.json.
"""

import dataclasses
from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.settings import TokenizerSettings

SPACE = "\u2581"  # how SentencePiece writes a space
Merges = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Vocabulary of a tokenizer, and what its file adds to it."""

    ids: dict[str, int]
    merges: Merges | None = None  # of BPE; None: WordPiece
    added: dict[int, AddedToken] = dataclasses.field(default_factory=dict)  # tokens that a file lists as added, by id
    extra: tuple[AddedToken, ...] = ()  # further ones
    post_processor: processors.PostProcessor | None = None  # of tokenizer.json
    is_json: bool = False  # True: from tokenizer.json, whose post-processor stands for add_bos_token and add_eos_token


@dataclasses.dataclass(frozen=True)
class Layout:
    """Layout of a tokenizer class: its model, what it does to a text before and after, its special tokens."""

    model: str  # BPE | WordPiece
    special_tokens: dict[str, str]  # of the class, by name, unless a file names others
    build: Callable[[Vocabulary, TokenizerSettings], Tokenizer]
    # The special tokens around a text; None: those of tokenizer.json, or of add_bos_token and add_eos_token.
    template: Callable[[Tokenizer, TokenizerSettings, dict[str, str]], processors.PostProcessor] | None = None


def build_tokenizer(vocabulary: Vocabulary, settings: TokenizerSettings) -> Tokenizer:
    """Build the tokenizer of a class in `LAYOUTS` from its vocabulary and settings.

    Raises:
      UserError: a setting of another type. The library raises other errors for a malformed vocabulary.
    """
    layout = LAYOUTS[settings.name]
    tokenizer = layout.build(vocabulary, settings)
    named = add_tokens(tokenizer, vocabulary, settings)
    if layout.template:
        tokenizer.post_processor = layout.template(tokenizer, settings, named)
    elif vocabulary.is_json:
        if vocabulary.post_processor is not None:
            tokenizer.post_processor = vocabulary.post_processor
    else:
        tokenizer.post_processor = _ends_template(tokenizer, settings, named)
    return tokenizer


def add_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary, settings: TokenizerSettings) -> dict[str, str]:
    """Add the special and the added tokens that the files list. Returns the special tokens' text by name."""
    defaults = LAYOUTS[settings.name].special_tokens if settings.name in LAYOUTS else {}
    named = settings.named(defaults)
    extra = [*vocabulary.extra, *settings.extra()]
    of_name = {token.content for token in named.values()}
    tokens = vocabulary.added | settings.added(of_name | {token.content for token in extra})
    known = {token.content for token in (*tokens.values(), *tokenizer.get_added_tokens_decoder().values())}
    listed = [tokens[i] for i in sorted(tokens)]
    for token in (*named.values(), *extra):
        if token.content not in known:
            listed.append(token)
            known.add(token.content)
    for token in listed:
        token.special = token.special or token.content in of_name
    if listed:
        tokenizer.add_tokens(listed)
    return {name: token.content for name, token in named.items()}


def _bpe(vocabulary: Vocabulary, **options: bool) -> Tokenizer:
    merges = vocabulary.merges or []
    return Tokenizer(models.BPE(vocab=vocabulary.ids, merges=merges, dropout=None, **options))


def _bert(vocabulary: Vocabulary, settings: TokenizerSettings) -> Tokenizer:
    unknown = settings.named(BERT.special_tokens).get("unk")
    tokenizer = Tokenizer(models.WordPiece(vocabulary.ids, unk_token=unknown.content if unknown else "[UNK]"))
    has_accents_rule = settings.config.get("strip_accents") is not None  # else accents go where case goes
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=settings.flag("strip_accents", True) if has_accents_rule else None,
        lowercase=settings.flag("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _byte_level(vocabulary: Vocabulary, settings: TokenizerSettings) -> Tokenizer:
    tokenizer = _bpe(vocabulary)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.flag("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _llama(vocabulary: Vocabulary, settings: TokenizerSettings) -> Tokenizer:
    tokenizer = _bpe(vocabulary, fuse_unk=True, byte_fallback=True)
    adds_space = settings.flag("add_prefix_space", True)
    scheme = "always" if settings.flag("legacy", False) else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme if adds_space else "never", split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if adds_space else steps)
    return tokenizer


def _bert_template(
    tokenizer: Tokenizer, settings: TokenizerSettings, named: dict[str, str]
) -> processors.PostProcessor:
    first, last = _required(tokenizer, named, "cls", "sep")
    return processors.TemplateProcessing([first[0], "$A", last[0]], None, [first, last])


def _roberta_template(
    tokenizer: Tokenizer, settings: TokenizerSettings, named: dict[str, str]
) -> processors.PostProcessor:
    first, last = _required(tokenizer, named, "cls", "sep")
    return processors.RobertaProcessing(
        last, first, settings.flag("trim_offsets", True), settings.flag("add_prefix_space", False)
    )


def _required(tokenizer: Tokenizer, named: dict[str, str], *names: str) -> list[tuple[str, int]]:
    """The special tokens of these names, and their ids."""
    if missing := [name for name in names if name not in named]:
        raise UserError(f"tokenizer_config.json: {missing[0]}_token=null: must be a token for this tokenizer_class.")
    return [(named[name], _id(tokenizer, named[name])) for name in names]


def _id(tokenizer: Tokenizer, token: str) -> int:
    i = tokenizer.token_to_id(token)
    assert i is not None, "it has been added"
    return i


def _ends_template(
    tokenizer: Tokenizer, settings: TokenizerSettings, named: dict[str, str]
) -> processors.PostProcessor:
    """The template that add_bos_token and add_eos_token describe."""
    names = [name for name in ("bos", "eos") if settings.flag(f"add_{name}_token", False) and name in named]
    ends = dict(zip(names, _required(tokenizer, named, *names), strict=True))
    first = [ends["bos"][0]] if "bos" in ends else []
    last = [ends["eos"][0]] if "eos" in ends else []
    return processors.TemplateProcessing([*first, "$A", *last], None, list(dict.fromkeys(ends.values())))


BERT = Layout(
    "WordPiece",
    {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
    _bert,
    _bert_template,
)
LAYOUTS = {
    "BertTokenizer": BERT,
    "GPT2Tokenizer": Layout("BPE", dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>"), _byte_level),
    "RobertaTokenizer": Layout(
        "BPE",
        dict(bos="<s>", eos="</s>", unk="<unk>", sep="</s>", pad="<pad>", cls="<s>", mask="<mask>"),
        _byte_level,
        _roberta_template,
    ),
    "LlamaTokenizer": Layout("BPE", {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}, _llama),
}
