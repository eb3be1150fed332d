"""Timelines of span files made by hand: what is read, what it amounts to, and what is drawn."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from bllpipe.cli.results import add_timeline
from bllpipe.errors import ConfigError
from bllpipe.tools.analysis.timeline import Timeline, chrome_trace, parse_steps, read_timeline
from bllpipe.tools.analysis.timeline_picture import LOOKS, picture
from tests.support.drawings import Drawing

MS = 1_000_000


def line(kind: str, step: int, start: float, end: float, actor: str, edge: str = "") -> dict[str, Any]:
    """A line of a span file; times in milliseconds."""
    place = {"kind": kind, "phase": "train", "step": step, "batch": step}
    return {**place, "start": int(start * MS), "end": int(end * MS), "actor": actor, **({"edge": edge} if edge else {})}


def block_0(step: int) -> list[dict[str, Any]]:
    """8 ms of computing in 10 ms."""
    at, actor = 10.0 * step, "block 0"
    send = line("send", step, at + 3, at + 5, actor, "alpha 0->1")
    return [line("forward", step, at, at + 3, actor), send, line("backward", step, at + 5, at + 10, actor)]


def block_1(step: int) -> list[dict[str, Any]]:
    """4 ms of computing in 10 ms, by a clock that is 1,000 ms behind."""
    at, actor = 10.0 * step - 1000, "block 1"
    receive = line("receive", step, at, at + 6, actor, "alpha 0->1")
    return [receive, line("forward", step, at + 6, at + 8, actor), line("backward", step, at + 8, at + 10, actor)]


def lanes(step: int) -> list[dict[str, Any]]:
    """Two lanes that compute at the same time for half of it."""
    at = 10.0 * step
    return [line("target", step, at + 1, at + 3, "lane 0"), line("target", step, at + 2, at + 4, "lane 1")]


def write_rank(run: Path, rank: int, role: str, lines: list[dict[str, Any]], **header: Any) -> Path:
    (run / "spans").mkdir(parents=True, exist_ok=True)
    first = {"version": 1, "rank": rank, "role": role, "pid": 1, **header}
    file = run / "spans" / f"rank-{rank}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in (first, *lines)))
    return file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Steps 4 to 7 of two blocks and the feedback."""
    path, steps = tmp_path / "made", range(4, 8)
    clock = {"clock_offset_ns": 1000 * MS, "clock_uncertainty_ns": 20_000}
    write_rank(path, 0, "block 0", [record for step in steps for record in block_0(step)])
    write_rank(path, 1, "block 1", [record for step in steps for record in block_1(step)], **clock)
    write_rank(path, 2, "feedback", [record for step in steps for record in lanes(step)])
    (path / "config.yaml").write_text("")
    return path


def read(run: Path) -> Timeline:
    return read_timeline(run, pytest.fail)


def timeline_command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_timeline(parser.add_subparsers())
    options = parser.parse_args(["timeline", *words])
    return int(options.run(options, words))


def test_busy_rate_and_bubbles_are_those_of_the_drawing_above(run: Path) -> None:
    timeline = read(run)
    assert [rank.busy for rank in timeline.ranks] == pytest.approx([0.8, 0.4, 12 / 33])
    assert timeline.steps_per_second == pytest.approx(100.0)
    assert timeline.bubbles == pytest.approx(0.4)


def test_all_times_are_those_of_rank_0(run: Path) -> None:
    timeline = read(run)
    assert [(rank.start / MS, rank.end / MS) for rank in timeline.ranks] == [(40, 80), (40, 80), (41, 74)]
    assert timeline.ranks[1].uncertainty == 20_000


def test_steps_are_cut_out_and_the_others_kept_aside(run: Path) -> None:
    part = read(run).cut(5, 7)
    assert part.steps == [5, 6]
    assert [(rank.start / MS, rank.end / MS) for rank in part.ranks[:2]] == [(50, 70), (50, 70)]
    assert {span.step for rank in part.ranks for span in rank.others} == {4, 7}
    assert part.bubbles == pytest.approx(0.4)
    assert read(run).cut(None, None) == read(run)
    assert read(run).cut(6, None).steps == [6, 7]


def test_steps_that_were_not_traced_are_refused(run: Path) -> None:
    with pytest.raises(
        ConfigError, match="made has spans of the steps 4 to 7, none of them in --steps 8:; take .* 4:8"
    ):
        read(run).cut(8, None)


@pytest.mark.parametrize(("text", "steps"), [("10:16", (10, 16)), ("10:", (10, None)), (":3", (None, 3))])
def test_steps_are_written_like_a_slice(text: str, steps: tuple[int | None, int | None]) -> None:
    assert parse_steps(text) == steps


@pytest.mark.parametrize("text", ["", "7", "a:b", "1:2:3", "-1:4"])
def test_other_steps_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--steps is .*; expected the first step .* such as 10:16"):
        parse_steps(text)


def test_a_run_without_spans_says_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no spans, .*; start a run with --set trace.num_steps=20"):
        read_timeline(tmp_path, print)


def test_a_file_without_a_header_is_refused(run: Path) -> None:
    (run / "spans" / "rank-1.jsonl").write_text(json.dumps(block_1(4)[0]) + "\n")
    with pytest.raises(ConfigError, match="rank-1.jsonl does not begin with a header of version 1"):
        read_timeline(run, print)


def test_torn_and_damaged_lines_are_left_out_and_told(run: Path) -> None:
    file = run / "spans" / "rank-0.jsonl"
    whole = read(run)
    odd = ["[]", '{"kind": "forward"}', json.dumps(line("forward", 4, 9, 8, "block 0"))]
    file.write_text(file.read_text() + "\n".join([*odd, '{"kind": "forw']))
    heard: list[str] = []
    assert read_timeline(run, heard.append) == whole
    assert heard == [f"{file}: damaged lines, left out: 4 of 16"]


def test_a_trace_has_every_span_as_an_event(run: Path) -> None:
    timeline = read(run)
    trace = json.loads(json.dumps(chrome_trace([timeline])))
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(slices) == sum(len(rank.spans) for rank in timeline.ranks)
    for event in trace["traceEvents"]:
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert event["ph"] in "XMsf" and isinstance(event["name"], str)
        assert event["ph"] == "M" or event["ts"] >= 0
    assert all(event["dur"] >= 0 for event in slices)
    first = min((event for event in slices if event["pid"] == 0), key=lambda event: event["ts"])
    assert (first["name"], first["ts"], first["dur"], first["args"]["step"]) == ("forward 4", 0.0, 3000.0, 4)
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert names == {(0, 0): "block 0", (1, 0): "block 1", (2, 0): "lane 0", (2, 1): "lane 1"}
    processes = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert processes[2] == "rank 2 (feedback)"


def test_arrows_go_from_inside_of_a_send_to_inside_of_its_receive(run: Path) -> None:
    trace = chrome_trace([read(run)])["traceEvents"]
    slices = [event for event in trace if event["ph"] == "X"]
    starts, ends = ({e["id"]: e for e in trace if e["ph"] == kind} for kind in "sf")
    assert starts.keys() == ends.keys() and len(starts) == 4
    for key in starts:
        assert starts[key]["ts"] <= ends[key]["ts"] and ends[key]["bp"] == "e"
        for arrow, kind in ((starts[key], "send"), (ends[key], "receive")):
            around = [e for e in slices if (e["pid"], e["tid"], e["cat"]) == (arrow["pid"], arrow["tid"], kind)]
            assert sum(e["ts"] <= arrow["ts"] < e["ts"] + e["dur"] for e in around) == 1


def test_runs_in_one_trace_are_told_apart(run: Path) -> None:
    trace = chrome_trace([read(run), read(run)])["traceEvents"]
    names = [event["args"]["name"] for event in trace if event["name"] == "process_name"]
    assert {event["pid"] for event in trace} == {0, 1, 2, 1000, 1001, 1002}
    assert names[0] == "made rank 0 (block 0)"
    assert len({event["id"] for event in trace if event["ph"] == "s"}) == 8


def boxes(found: Drawing, kind: str, look: str = "box") -> list[tuple[float, float, float]]:
    """Left edge, width and height of the boxes of a kind, in the order of their ranks and times."""
    drawn = []
    for note, corners in zip(found.notes(look), found.corners(look), strict=True):
        if note.startswith(f"{kind},") or note.startswith(f"{kind} "):
            xs, ys = zip(*corners, strict=True)
            drawn.append((min(xs), max(xs) - min(xs), max(ys) - min(ys)))
    return drawn


def drawing(*timelines: Timeline, title: str = "A title") -> Drawing:
    return Drawing(picture(title, timelines))


def test_boxes_stand_at_their_times_and_carry_their_steps(run: Path) -> None:
    found = drawing(read(run))
    forward, backward, send = (boxes(found, kind) for kind in ("forward", "backward", "send"))
    assert len(forward) == len(backward) == 8
    width = backward[0][1]
    assert forward[1][0] - forward[0][0] == pytest.approx(2 * width, abs=0.2), "10 ms apart, and 5 ms long"
    assert backward[0][0] == pytest.approx(forward[0][0] + width, abs=0.2), "a bubble of 2 ms after 3 ms of forward"
    assert send[0][2] < forward[0][2] / 3, "waiting leaves the bubble in sight"
    assert {"A title", "made", "F4", "B7", "0  block 0", "80 % busy", "40 % busy"} <= set(found.texts)
    assert any("100 steps/s, bubbles 40.0 % of the blocks' time; clocks aligned to 0.020 ms" in t for t in found.texts)
    assert "send alpha 0->1, step 4, block 0: 2.000 ms from 3.000 ms on" in found.notes("box")


def test_other_steps_are_pale_and_end_with_the_picture(run: Path) -> None:
    found = drawing(read(run).cut(5, 7))
    assert "F5" in found.texts and "F4" not in found.texts
    assert len(boxes(found, "forward")) == 4 and boxes(found, "forward", "pale") == [], "whole steps lie outside"
    late = read(run)
    part = drawing(Timeline("made", (late.cut(5, 7).ranks[0], late.cut(4, 5).ranks[1])))
    assert len(boxes(part, "forward", "pale")) == 3
    assert any("pale: other steps" in text for text in part.texts)


def test_runs_below_each_other_have_one_scale(run: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    stretched = [{**record, "end": record["end"] + 30 * MS} for record in block_0(4)[2:]]
    write_rank(slow, 0, "block 0", [*block_0(4)[:2], *stretched])
    widths = [width for _, width, _ in boxes(drawing(read(run).cut(4, 5), read(slow)), "backward")]
    assert widths[-1] == pytest.approx(7 * widths[0], rel=0.01), "35 ms and 5 ms"


def test_kinds_differ_without_colour() -> None:
    looks = [look for look in LOOKS.values() if look.letter]
    assert len({look.letter for look in looks}) == len(looks)
    assert len({(look.colour, look.hatch) for look in looks}) == len(looks)


def test_kinds_of_other_engines_are_drawn_too(run: Path) -> None:
    write_rank(run, 0, "<stage>", [line('a "<kind>"', 4, 1, 5, "<&>")])
    found = drawing(read(run), title="<&>")
    assert {'a "<kind>"', "X4", "<&>"} <= set(found.texts)


def test_names_in_any_script_are_drawn_without_a_warning(run: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "\u6f22\u5b57" in drawing(read(run), title="\u6f22\u5b57").texts


def test_light_and_dark(run: Path) -> None:
    colour = LOOKS["forward"].colour
    rules, _, shapes = picture("", [read(run)]).partition("</style>")
    _, _, dark = rules.partition("@media (prefers-color-scheme: dark)")
    assert colour.light in shapes and colour.dark not in shapes
    assert f'[style*="stroke: {colour.light}"] {{ stroke: {colour.dark} !important; }}' in dark
    assert "<style" not in picture("", [read(run)], heading=False), "the page has the rules"


def test_the_same_timeline_is_the_same_picture(run: Path) -> None:
    assert picture("A title", [read(run)]) == picture("A title", [read(run)])


def test_the_command_writes_a_picture_and_a_trace(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.json"
    assert timeline_command(str(run), "--steps", "5:7", "--trace", str(trace), "--title", "Mine") == 0
    assert "Mine" in Drawing((run / "timeline.svg").read_text()).texts
    assert {event["args"]["step"] for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"} == {
        5,
        6,
    }
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("made: steps 5 to 6, 100 steps/s, bubbles 40.0 %")
    assert out[1].startswith("busy: rank 0 80.0 %, rank 1 40.0 %")
    assert out[2:] == [f"wrote {trace}", f"wrote {run / 'timeline.svg'}"]


def test_a_page_has_the_title_once(run: Path, tmp_path: Path) -> None:
    assert timeline_command(str(run), str(run), "--out", str(tmp_path / "page.html")) == 0
    text = (tmp_path / "page.html").read_text()
    assert text.count(">Timeline of made, made</h1>") == 1 and "<svg" in text and "<script" not in text


def test_many_steps_are_drawn_with_a_word_of_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rank(tmp_path, 0, "block 0", [record for step in range(40) for record in block_0(step)])
    (tmp_path / "config.yaml").write_text("")
    assert timeline_command(str(tmp_path)) == 0
    assert "40 steps make small boxes; for fewer of them: --steps 0:6" in capsys.readouterr().err


def test_a_format_that_is_not_known(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="page.gif has no format that is known; expected one of .svg, .png, .html"):
        timeline_command(str(run), "--out", str(tmp_path / "page.gif"))


def test_a_png_has_two_pixels_for_each_of_the_svg(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.png"
    assert timeline_command(str(run), "--out", str(out)) == 0
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(out.read_bytes()[16:20], "big") == 2400


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
@pytest.mark.parametrize("command", ["report", "timeline"])
def test_without_the_extra_a_command_says_how_to_install_it(run: Path, command: str, package: str) -> None:
    block = f"import sys; sys.modules[{package!r}] = None"
    program = f"{block}\nfrom bllpipe.cli import main\nsys.exit(main([{command!r}, {str(run)!r}]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == ConfigError.exit_code
    assert f"but {package} is not installed; use pip install 'bllpipe[report]'" in done.stderr


def test_commands_start_without_the_extra() -> None:
    program = "import sys, bllpipe.cli as c; c._parser(); sys.exit(bool({'matplotlib', 'jinja2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], timeout=240).returncode == 0
