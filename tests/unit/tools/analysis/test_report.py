"""The report: one file that shows what the runs wrote, and is right for figures made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bllpipe.tools.analysis.report_figures import MOST_STEPS
from tests.support.jobs import SMALL, in_this_process, summary
from tests.support.report_pages import Page, line, made_by_hand, report

SECTIONS = ["runs", "machines", "accuracy", "learning", "blocks", "alignment", "time", "timeline", "config"]


@pytest.fixture(scope="module")
def real_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    settings = ("engine=sequential", *SMALL, "steps=12", "blocks=2", "trace.num_steps=8", "trace.first_step=2")
    for seed in (0, 1):
        in_this_process(root / f"seed-{seed}", *settings, f"seed={seed}")
    in_this_process(root / "lagged", *settings, "feedback.lag=2")
    return [root / "seed-0", root / "seed-1", root / "lagged"]


@pytest.fixture(scope="module")
def page(real_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(real_runs, tmp_path_factory.mktemp("out") / "new" / "report.html")


def test_the_sections_stand_in_their_order(page: Page) -> None:
    assert page.sections == SECTIONS
    assert page.words["h1"] == ["Report on 3 runs"]


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", page.text)  # a name, which is never looked up
    assert not re.search(r"https?:|//\w+\.|url\((?!#)|@import", text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "a", "base"}
    assert not {name for _, attributes in page.tags for name in attributes} & {"src", "href"}
    ids = {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}
    assert {attributes.get("xlink:href") for tag, attributes in page.tags if tag == "use"} <= ids, "markers of the page"
    assert "default-src 'none'" in page.text
    assert "prefers-color-scheme: dark" in page.text


def test_the_table_says_what_the_summaries_say(page: Page, real_runs: list[Path]) -> None:
    found = [summary(path) for path in real_runs]
    assert page.column("runs", "run") == ["seed-0", "seed-1", "lagged"]
    assert page.column("runs", "seed") == ["0", "1", "0"]
    assert page.column("runs", "test accuracy") == [f"{100 * one['test_accuracy']:.2f} %" for one in found]
    assert page.column("runs", "images/s") == [f"{one['images_per_second']:,.0f}" for one in found]
    assert page.column("runs", "seconds") == [f"{one['seconds']:,.1f}" for one in found]
    assert page.column("runs", "state_sha256") == [one["state_sha256"][:12] for one in found]
    assert page.column("runs", "status") == ["completed"] * 3
    assert page.column("machines", "runs") == ["all"]


def test_only_keys_that_differ_are_listed(page: Page) -> None:
    assert page.tables["config"] == [
        ["key", "seed-0", "seed-1", "lagged"],
        ["seed", "0", "1", "0"],
        ["feedback.lag", "1", "1", "2"],
    ]


def test_every_chart_has_a_title_labels_and_a_caption(page: Page) -> None:
    num_figures = len([tag for tag, _ in page.tags if tag == "figure"])
    assert num_figures == len(page.drawn("chart")) == len(page.words["h3"]) == len(page.words["figcaption"]) == 7
    labels = page.words["text"]
    assert {"test accuracy (%)", "loss (nats per image)", "share of the training time (%)"} <= set(labels)
    assert labels.count("training steps") == 3
    assert page.words["h3"].count("Alignment: bll, feedback.lag=2") == 1


def many_replicas(path: Path, number: int) -> Path:
    """A run with so many replicas of block 0, each busier than the one before."""
    made = made_by_hand(
        path, lines=[{**line("train", step, 0, loss=0.5), "role": "block 0 replica 0"} for step in (1, 2)]
    )
    found = json.loads((made / "summary.json").read_text())
    found["roles"] = [*(f"block 0 replica {each}" for each in range(number)), "block 1", "feedback"]
    found["busy"] = [*(0.5 + each / 1000 for each in range(number)), 0.25, 0.125]
    found["waiting"] = [*({f"alpha {each}->{number}": 1.0 + each} for each in range(number)), {}, {"stats 0->2": 1.0}]
    (made / "summary.json").write_text(json.dumps(found))
    return made


def test_replicas_of_a_block_are_its_ranks(tmp_path: Path) -> None:
    few = report([many_replicas(tmp_path / "few", 3)], tmp_path / "few.html")
    names = {"0 block 0 replica 0", "1 block 0 replica 1", "2 block 0 replica 2", "3 block 1", "4 feedback"}
    assert names <= set(few.words["text"])
    assert "damaged lines" not in few.text, "the first replica's line is that of the block"


def test_of_hundreds_of_replicas_the_busiest_of_every_block_is_shown(tmp_path: Path) -> None:
    many = report([many_replicas(tmp_path / "many", 200)], tmp_path / "many.html")
    shown = {word for word in many.words["text"] if re.search(r"block \d", word)}
    assert shown == {"block 0", "block 1", "199 block 0 replica 199", "200 block 1"}
    assert any("The busiest rank is 199 block 0 replica 199" in caption for caption in many.words["figcaption"])


def test_runs_that_differ_in_seed_alone_are_a_group(tmp_path: Path) -> None:
    runs = [
        made_by_hand(tmp_path / "a", "seed=1", "name=a", accuracy=(0.5, 0.90)),
        made_by_hand(tmp_path / "b", "seed=2", accuracy=(0.7, 0.94)),
        made_by_hand(tmp_path / "c", "seed=3", accuracy=(0.6, 0.95)),
        made_by_hand(tmp_path / "d", "method=dgl", "optimizer.lr=0.2", accuracy=(0.25, 0.8)),
    ]
    found = report(runs, tmp_path / "report.html")
    assert found.tables["accuracy"] == [
        ["method", "mean", "standard deviation", "n", "seeds"],
        # deviations -3, 1, 2 percent: sqrt((9 + 1 + 4) / 2) = 2.645...
        ["bll, optimizer.lr=0.05", "93.00 %", "2.65 %", "3", "1, 2, 3"],
        ["dgl, optimizer.lr=0.2", "80.00 %", "\N{EN DASH}", "1", "0"],
    ]
    assert found.tables["blocks"] == [
        ["method", "block 0", "block 1"],
        ["bll, optimizer.lr=0.05", "60.00 ± 10.00 %", "93.00 ± 2.65 %"],
        ["dgl, optimizer.lr=0.2", "25.00 %", "80.00 %"],
    ]


def test_groups_that_differ_in_many_keys_get_a_number(tmp_path: Path) -> None:
    many = ("epochs=3", "optimizer.lr=0.2", "feedback.lag=2", "model.width=8", "data.image_size=16")
    runs = [made_by_hand(tmp_path / "a"), made_by_hand(tmp_path / "b", *many)]
    labels = report(runs, tmp_path / "report.html").column("accuracy", "method")
    assert [label.split("…")[1] for label in labels] == [" (group 1)", " (group 2)"]
    assert labels[1].startswith("bll, ")


def test_a_network_that_is_not_cut_has_a_place_of_its_own(tmp_path: Path) -> None:
    runs = [
        made_by_hand(tmp_path / "local"),
        made_by_hand(tmp_path / "whole", "method=bp", "engine=single", accuracy=(0.9,)),
    ]
    assert [row[1:] for row in report(runs, tmp_path / "report.html").tables["blocks"]] == [
        ["block 0", "block 1", "network"],
        ["50.00 %", "75.00 %", "\N{EN DASH}"],
        ["\N{EN DASH}", "\N{EN DASH}", "90.00 %"],
    ]


def test_curves_lie_where_the_figures_say(tmp_path: Path) -> None:
    """Two seeds: the line goes through the means, the band through the extremes, and epochs are steps / 10."""
    for seed, (first, second) in enumerate([(0.2, 0.8), (0.4, 1.0)]):
        lines = [line("evaluate", 10, accuracy=first), line("evaluate", 20, epoch=1, accuracy=second)]
        made_by_hand(tmp_path / str(seed), f"seed={seed}", lines=[*lines, line("evaluate", 10, block=0, accuracy=0.0)])
    found = report([tmp_path / "0", tmp_path / "1"], tmp_path / "report.html").drawing(0)
    ((x_1, mean_1), (x_2, mean_2)) = found.corners("line")[0]
    heights = sorted({y for _, y in found.corners("band")[0]})
    percent = (found.places["20 %"][1] - found.places["100 %"][1]) / 80  # pixels
    edges = [mean + off * percent for mean in (mean_2, mean_1) for off in (-10, 10)]
    assert heights == pytest.approx(edges, abs=0.2)
    assert mean_1 - mean_2 == pytest.approx(60 * percent, abs=0.2)
    assert (x_1, x_2) == pytest.approx((found.places["1.0"][0], found.places["2.0"][0]), abs=0.1), "epochs"
    assert found.notes("mark") == [
        "bll, epochs 1: 30.00 % (20.00 % to 40.00 %, n = 2)",
        "bll, epochs 2: 90.00 % (80.00 % to 100.00 %, n = 2)",
    ]


def test_busy_and_waiting_are_shares_of_the_training_time(tmp_path: Path) -> None:
    """20 steps of 10 images at 50 images/s are 4 s of training; lanes wait side by side, so their mean counts."""
    found = report([made_by_hand(tmp_path / "a")], tmp_path / "report.html")
    assert {"50 + 25 %", "25 + 0 %", "12 + 50 %"} <= set(found.words["text"])
    assert {"0 block 0", "1 block 1", "2 feedback"} <= set(found.words["text"])


def test_busy_and_waiting_are_never_more_than_all_of_the_time(tmp_path: Path) -> None:
    """The rate leaves out the slow first steps, so the training time that it gives is a little too short."""
    run = made_by_hand(tmp_path / "a")
    summary_json = run / "summary.json"
    summary_json.write_text(summary_json.read_text().replace('"alpha 0->1": 1.0', '"alpha 0->1": 2.5'))
    assert "50 + 50 %" in report([run], tmp_path / "report.html").words["text"]


def test_the_longest_wait_of_every_rank_is_named(tmp_path: Path) -> None:
    found = report([made_by_hand(tmp_path / "a")], tmp_path / "report.html")
    assert found.tables["time"] == [
        ["method", "rank", "waited longest for", "seconds", "of its waiting"],
        ["bll", "0 block 0", "alpha 0->1", "1.0", "100 %"],
        ["bll", "2 feedback", "stats 1->2", "3.0", "75 %"],
    ]


def test_a_few_steps_of_every_traced_run_are_drawn(page: Page, real_runs: list[Path]) -> None:
    names = [path.name for path in real_runs]
    assert page.text.count('class="timeline"') == 1
    assert [word for word in page.words["text"] if word in names] == names
    drawn = {int(found) for found in re.findall(r"forward, step (\d+)", page.text)}
    assert drawn >= {4, 5, 6, 7} and f"steps 4 to {3 + MOST_STEPS}," in page.text


def test_spans_that_cannot_be_read_are_a_note(tmp_path: Path) -> None:
    run = made_by_hand(tmp_path / "a")
    (run / "spans").mkdir()
    (run / "spans" / "rank-0.jsonl").write_text("garbage\n")
    found = report([run], tmp_path / "report.html")
    assert "timeline" not in found.sections
    assert "does not begin with a header of version 1" in " ".join(found.words["li"])


def test_alignment_is_drawn_where_it_was_recorded(tmp_path: Path) -> None:
    lines = [line("train", step, block, loss=1.0, alignment=0.1 * step) for step in (5, 10) for block in (0, 1)]
    run = made_by_hand(tmp_path / "with", lines=lines)
    other = made_by_hand(tmp_path / "without", "feedback.lag=2", lines=[line("train", 5, loss=1.0)])
    both = report([run, other], tmp_path / "report.html")
    assert [title for title in both.words["h3"] if "Alignment" in title] == ["Alignment: bll, feedback.lag=1"]
    assert any("block 0 1.00; block 1 1.00." in caption for caption in both.words["figcaption"])
    assert "alignment" not in report([other], tmp_path / "report.html").sections


def test_long_runs_make_small_pages(tmp_path: Path) -> None:
    lines = [line("train", step, loss=1 / step) for step in range(1, 5001)]
    found = report([made_by_hand(tmp_path / "a", lines=lines)], tmp_path / "report.html")
    assert 200 < max(map(len, found.drawing(0).corners("line"))) <= 300
    assert len(found.text) < 60_000


def test_one_run_has_nothing_to_differ_from(tmp_path: Path) -> None:
    run = made_by_hand(tmp_path / "only")
    found = report([run, run], tmp_path / "report.html")
    assert found.words["h1"] == ["Report on run only"], "the same run twice is one run"
    assert "config" not in found.sections
    assert (
        report([run, made_by_hand(tmp_path / "b")], tmp_path / "report.html").words["p"][-1].startswith("No config key")
    )


def test_runs_of_the_same_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [made_by_hand(tmp_path / folder / "run") for folder in ("x", "y")]
    assert report(runs, tmp_path / "report.html").column("runs", "run") == [str(path) for path in runs]
