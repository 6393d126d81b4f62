"""Generated examples (names of ten languages, Python code), and TFDS."""

import functools
import json
import shutil
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from helpers.text_files import parts_of
from tensorflow_datasets.core.download import DownloadManager

from train.config import DataConfig
from train.data.from_tfds import tfds_rows
from train.data.labelled import labelled_split
from train.data.languages import LANGUAGES, languages
from train.data.pairs import load_split
from train.data.python_tokens import python_tokens, tags_of
from train.data.sources import load_documents
from train.data.tagged import tagged_split
from transformer_jax.errors import UserError

SPLITS = ("train", "val", "test")


def test_names_of_ten_languages_belong_to_one_language_and_one_split():
    parts = [languages(None, split) for split in SPLITS]
    names = [name for part in parts for name, _, _ in part]
    assert len(set(names)) == len(names) > 5000
    for part in parts:
        assert len({language for _, language, _ in part}) == len(LANGUAGES) == 10
    labels = {name: language for part in parts for name, language, _ in part}
    assert labels["Deutschland"] == "German" and labels["Etelä-Afrikka"] == "Finnish"
    assert "Zimbabwe" not in labels  # several languages share it
    assert parts == [languages(None, split) for split in SPLITS]


def test_every_character_of_code_gets_its_tag():
    code = 'def f(x):  # π\n    return "a\nb" if x else 0x1F\n'.replace("\nb", "b")
    tags = tags_of(code)
    words = {"def": "keyword", "x": "name", "(": "operator", "# π": "comment", '"ab"': "string", "0x1F": "number"}
    for word, tag in words.items():
        first = code.index(word)
        assert tags[first : first + len(word)] == [tag] * len(word)
    assert len(tags) == len(code) and tags[-1] == "space"
    assert set(tags_of('x = """a\n\n b"""')[4:]) == {"string"}
    assert tags_of('f"a"') == ["string"] * 4


def test_python_code_comes_in_lines_of_files_that_are_in_one_split_only():
    parts = [python_tokens(None, split) for split in ("val", "test")]
    files = [{where.rsplit(", line", 1)[0] for _, _, where in part} for part in parts]
    assert not files[0] & files[1] and all(len(part) == 400 for part in parts)
    for characters, tags, where in parts[0][:50]:
        file, line = where.rsplit(", line ", 1)
        text = "".join(characters)
        assert len(tags) == len(text) <= 200
        with open(file, encoding="utf-8") as stream:
            assert "".join(stream.readlines()[int(line) - 1 :]).startswith(text)


# TFDS

WORDS = ["one two", "Grüße", "three"]


class Toy(tfds.core.GeneratorBasedBuilder):
    """Texts with a label, two languages and tagged words."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "sentence": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["bad", "good"]),
            "en": tfds.features.Text(),
            "de": tfds.features.Text(),
            "tokens": tfds.features.Sequence(tfds.features.Text()),
            "ner": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B-x"])),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in ("train", "validation")}

    def _generate_examples(self, split):
        for i, text in enumerate(WORDS):
            words = text.split()
            yield (
                i,
                {
                    "sentence": text,
                    "label": i % 2,
                    "en": text,
                    "de": f"{split} {text}",
                    "tokens": words,
                    "ner": [i % 2] * len(words),
                },
            )


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Toy(data_dir=folder, file_format="array_record").download_and_prepare()
    return functools.partial(DataConfig, source="tfds", path="toy", tfds_dir=str(folder))


def test_texts_labels_tags_and_pairs_come_from_a_prepared_dataset(toy):
    assert sorted((text, label) for text, label, _ in labelled_split(toy(), "train")) == sorted(
        zip(WORDS, ["bad", "good", "bad"], strict=True)
    )
    assert sorted(load_split(toy(), "val")) == sorted((text, f"validation {text}") for text in WORDS)
    tagged = {tuple(s.words): s.tags for s in tagged_split(toy(), "train")}
    assert tagged == {("one", "two"): ["O", "O"], ("Grüße",): ["B-x"], ("three",): ["O"]}
    train, validation = load_documents(toy(text_field="de"))
    assert sorted(train) == sorted(f"train {text}" for text in WORDS) and len(validation) == 3
    assert len(labelled_split(toy(train_split="train[:2]"), "train")) == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"path": ""}, "data.path='': data.source=tfds needs a name"),
        ({"path": "no_such_thing"}, "data.path='no_such_thing': this dataset cannot be found"),
        ({"val_split": "dev"}, "has no split data.val_split='dev'"),
        ({"label_field": "stars"}, "has no field 'stars'. It has: .*sentence"),
    ],
)
def test_a_missing_dataset_split_or_field_of_tfds_is_named_in_one_line(toy, changes, message):
    with pytest.raises(UserError, match=message) as error:
        labelled_split(toy(**changes), "val")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["label", "ner"])  # ner: a sequence of labels, nested
def test_a_folder_of_tfds_imports_no_module_that_its_features_name(toy, name, tmp_path, monkeypatch):
    (tmp_path / "evil_features.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    version = Path(shutil.copytree(f"{toy().tfds_dir}/toy", tmp_path / "data" / "other")) / "1.0.0"
    config = toy(path="other", tfds_dir=str(tmp_path / "data"))
    assert len(labelled_split(config, "train")) == 3  # without a program: from the folder alone
    features = json.loads((version / "features.json").read_text())
    feature = features["featuresDict"]["features"][name]
    feature = feature["sequence"]["feature"] if name == "ner" else feature
    feature["pythonClassName"] = "evil_features.Evil"
    (version / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"features.json names the class 'evil_features.Evil'") as error:
        labelled_split(config, "train")
    assert "\n" not in str(error.value) and not (tmp_path / "owned").exists()


def test_tiny_shakespeare_is_prepared_from_a_local_file_without_tensorflow(tmp_path, monkeypatch):
    text = "".join(f"Citizen {i}: speak, speak.\n" for i in range(400))
    (tmp_path / "input.txt").write_text(text)
    monkeypatch.setattr(DownloadManager, "download", lambda self, url: str(tmp_path / "input.txt"))
    config = DataConfig(source="tfds", path="tiny_shakespeare", tfds_dir=str(tmp_path / "data"))
    train, validation = parts_of(config)
    assert train + validation == text[: len(train) + len(validation)] and len(train) == int(0.9 * len(text))
    assert tfds_rows(config, "test", ("text",))[0]["text"] == text[len(train) + len(validation) :]
    assert "tensorflow" not in sys.modules
