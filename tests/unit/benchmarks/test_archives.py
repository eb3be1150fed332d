"""Archives with fewer and with wrong labels."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import archives
from benchmarks.experiments import experiment_trials
from bllpipe.config import load_config
from bllpipe.errors import ConfigError

QUESTIONS = Path(__file__).parents[3] / "benchmarks" / "questions"
LABELS = np.repeat(np.arange(5), 40)


def test_few_keeps_as_many_of_every_class() -> None:
    kept = archives.few(LABELS, 7, np.random.default_rng(0))
    assert np.bincount(LABELS[kept]).tolist() == [7] * 5 and (np.diff(kept) > 0).all()
    assert len(archives.few(LABELS, 1000, np.random.default_rng(0))) == len(LABELS)


def test_noisy_changes_the_share_and_every_changed_label_is_wrong() -> None:
    changed = archives.noisy(LABELS, 0.4, np.random.default_rng(0))
    assert (changed != LABELS).sum() == 80 and set(changed) == set(range(5))


def test_pairs_are_of_every_two_classes_and_show_each_image_left_and_right() -> None:
    label_N = np.repeat(np.arange(4), 32)
    image_NHWC = np.arange(128, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), dtype=np.uint8)
    picture_NHWC, label_P = archives.pairs(image_NHWC, label_N, np.random.default_rng(0))
    left, right = picture_NHWC[:, 0, 0, 0], picture_NHWC[:, 0, 2, 0]
    assert picture_NHWC.shape == image_NHWC.shape and np.bincount(label_P).tolist() == [8] * 16
    assert sorted(left) == sorted(right) == list(range(128))
    assert (4 * label_N[left] + label_N[right] == label_P).all()


def test_the_command_writes_an_archive_and_leaves_the_test_alone(tmp_path: Path) -> None:
    images = np.arange(200 * 4 * 4 * 3, dtype=np.uint8).reshape(200, 4, 4, 3)
    np.savez(tmp_path / "all.npz", train_x=images, train_y=LABELS, test_x=images[:9], test_y=LABELS[:9])
    for kind in ("few", "noisy", "pairs"):
        words = [kind, str(tmp_path / "all.npz"), str(tmp_path / f"{kind}.npz"), "--per-class", "3"]
        assert archives.main(words) == 0
    with np.load(tmp_path / "few.npz") as few, np.load(tmp_path / "noisy.npz") as noisy:
        assert len(few["train_x"]) == len(few["train_y"]) == 15 and len(few["test_y"]) == 9
        assert np.array_equal(noisy["train_x"], images) and np.array_equal(noisy["test_y"], LABELS[:9])
    with np.load(tmp_path / "pairs.npz") as two:
        assert two["train_x"].shape[1:] == (4, 4, 3) and two["train_y"].max() == 24


def test_every_variant_of_every_question_is_a_config_that_can_run() -> None:
    files = sorted(QUESTIONS.glob("*.yaml"))
    assert files
    for file in files:
        for trial in experiment_trials(str(file), [0]):
            load_config(str(trial.config), trial.settings())


def test_some_variants_of_a_question() -> None:
    file = str(QUESTIONS / "rates_and_heads.yaml")
    trials = experiment_trials(file, [3, 4], only=["bp-*", "strided-kl0-lr0.4"])
    names = [*(f"bp-lr{rate}" for rate in (0.1, 0.2, 0.4, 0.8)), "strided-kl0-lr0.4"]
    assert [trial.key for trial in trials] == [f"{name}-s{seed}" for seed in (3, 4) for name in names]
    assert len(experiment_trials(file, [3])) == 4 + 3 * 5 * 4 + 5
    with pytest.raises(ConfigError, match=r"--only dgl-\*: .* no variant of .*rates_and_heads.*use one of bp-lr0\.1"):
        experiment_trials(file, [3], only=["bp-*", "dgl-*"])
