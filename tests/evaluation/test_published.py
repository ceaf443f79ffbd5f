"""Published results: written small, resumed by row, marked where a method's code has changed."""

import pandas as pd
import pytest

from helpers.errors import UserError
from helpers.evaluation import published as module
from helpers.evaluation.leaderboard import leaderboard
from helpers.evaluation.published import (
    IDENTITY,
    PARTS,
    State,
    as_published,
    beside,
    chosen_strengths,
    method_code,
    method_files,
    part_of,
    publish,
    published,
    sources,
    state_of,
    take_in_parts,
    with_rows,
)
from helpers.io.code_version import REPOSITORY, code_in_use
from helpers.methods import METHODS

ABOUT = {"model_hash": "12ab", "settings": "4 neighbours, 64 tokens", "commit": "c0ffee"}


def measured(method: str, left: float, *, subject="Japan", seed=0, scale=1.0, refused="", **more):
    """One row as `tradeoff` makes it."""
    scores = {
        "paraphrases": left,
        "paraphrases_before": 0.8,
        "neighbours": 1.0,
        "change_neighbours": more.pop("change", 0.0),
        "seconds": 2.0,
        "removes": True,
        "appends": False,
    }
    return pd.DataFrame(
        [
            {
                "subject": subject,
                "target": "x",
                "method": method,
                "family": METHODS[method].family,
                "seed": seed,
                "scale": scale,
                "refused": refused,
                **(dict.fromkeys(scores) if refused else scores),
                **more,
            }
        ]
    )


def rows(method: str, left: float, split: str = "heldout", **given) -> pd.DataFrame:
    return as_published(measured(method, left, **given), method, split=split, **ABOUT)


def test_rows_are_read_as_they_were_written_in_little_space(tmp_path):
    path = tmp_path / "facts.parquet"
    tables = [
        rows(m, 0.1, subject=f"s{i}", seed=s)
        for m in ("rome", "memit")
        for i in range(20)
        for s in range(3)
    ]
    table = pd.concat(tables, ignore_index=True)
    publish(path, table)
    assert path.stat().st_size < 12 * len(table)
    read = published(path, model_hash="12ab", split="heldout")
    assert len(read) == len(table) and not read["changed"].any()
    assert published(path, model_hash="other").empty and published(path, split="dev").empty
    board = leaderboard(read).set_index("method")
    assert board.loc["rome", "facts"] == 20
    assert board.loc["rome", "P(target) left"] == pytest.approx(0.125)
    assert published(tmp_path / "missing.parquet").empty


def test_a_measurement_made_again_takes_the_place_of_the_old_one():
    old = pd.concat([rows("rome", 0.4), rows("rome", 0.3, subject="Kenya")], ignore_index=True)
    table = with_rows(old, rows("rome", 0.1, scale=0.5))
    left = table[table["metric"] == "paraphrases"].set_index("subject")["value"]
    assert left.to_dict() == {"Kenya": 0.3, "Japan": 0.1}
    refused = with_rows(table, rows("rome", 0.1, refused="why"))
    japan = refused[refused["subject"] == "Japan"]
    assert japan["metric"].tolist() == ["refused"]
    assert not refused.duplicated([*IDENTITY, "metric"]).any()


def test_only_rows_of_a_method_that_changed_are_marked(tmp_path, monkeypatch):
    path = tmp_path / "facts.parquet"
    publish(path, pd.concat([rows("rome", 0.1), rows("memit", 0.1)], ignore_index=True))
    monkeypatch.setattr(
        module, "method_code", lambda label: "new" if label == "rome" else method_code(label)
    )
    read = published(path)
    assert set(read.loc[read["changed"], "method"]) == {"rome"}
    assert "older version: rome." in sources(read) and "c0ffee" in sources(read)
    assert sources(read[:0]) == ""


def test_rows_from_before_partial_was_told_from_undecided_are_named(tmp_path):
    path = tmp_path / "facts.parquet"
    publish(path, pd.concat([rows("rome", 0.1), rows("memit", 0.1)], ignore_index=True))
    read = published(path)
    old = read.assign(metric="state_undecided")
    new = read[read["method"] == "memit"].assign(metric="state_partial")
    assert "partial" not in sources(read)
    assert "stands for *partial* too in every row." in sources(pd.concat([read, old]))
    assert "too in the rows of rome." in sources(pd.concat([read, old, new]))


def test_what_is_missing_comes_before_what_has_changed(monkeypatch):
    made = rows("rome", 0.1)
    assert state_of(None, "rome", (1.0,)) == State.MISSING
    assert state_of(made, "rome", (1.0,)) == State.CURRENT
    assert state_of(made, "rome", (0.5, 1.0)) == State.MISSING
    assert state_of(rows("rome", 0.1, refused="why"), "rome", (0.5, 1.0)) == State.CURRENT
    monkeypatch.setattr(module, "evaluation_code", lambda: "new")
    assert state_of(made, "rome", (1.0,)) == State.SCORES_CHANGED
    monkeypatch.setattr(module, "method_code", lambda label: "new")
    assert state_of(made, "rome", (1.0,)) == State.METHOD_CHANGED
    assert sorted(State) == [*State]


def test_a_method_that_is_gone_is_marked(tmp_path):
    path = tmp_path / "facts.parquet"
    publish(path, rows("rome", 0.1).assign(method="former_method"))
    assert published(path)["changed"].all()


def test_the_code_of_a_method_is_its_own():
    surgery = REPOSITORY / "helpers" / "methods" / "surgery"
    alone = {
        name: code_in_use([surgery / f"{name}.py"], ("methods",)) for name in ("rome", "leace")
    }
    assert alone["rome"] != alone["leace"]
    assert method_code("rome") != method_code("memit")
    assert method_code("gated_neuron, low_rank") == method_code("gated_neuron")
    assert code_in_use([surgery / "rome.py"], ("nowhere",)) == code_in_use([], ())


@pytest.mark.parametrize("name", METHODS)
def test_the_file_that_defines_a_method_is_part_of_its_code(name):
    texts = [path.read_text() for path in method_files(name)]
    assert any("method(" in text and f'"{name}"' in text for text in texts)


def test_code_that_a_module_uses_by_name_counts_and_no_other(tmp_path, monkeypatch):
    from helpers.io import code_version

    folder = tmp_path / "helpers"
    (folder / "room").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "room" / "__init__.py").write_text(
        "from helpers.room.used import f\nfrom helpers.room.other import g\n"
    )
    (folder / "room" / "used.py").write_text("from helpers.room.deep import h\nf = h\n")
    (folder / "room" / "deep.py").write_text("h = 1\n")
    (folder / "room" / "other.py").write_text("g = 1\n")
    start = folder / "start.py"
    start.write_text("from helpers.room import f\n")
    monkeypatch.setattr(code_version, "REPOSITORY", tmp_path)

    def code() -> str:
        for function in ("parsed", "_used_by", "_summary"):
            getattr(code_version, function).cache_clear()
        return code_in_use([start], ("room",))

    before = code()
    (folder / "room" / "other.py").write_text("g = 2\n")
    assert code() == before  # its neighbour in the package
    (folder / "room" / "deep.py").write_text('"""With a docstring."""\nh = 1\n')
    assert code() == before
    (folder / "room" / "deep.py").write_text("h = 2\n")
    assert code() != before
    code_version._summary.cache_clear()


def test_strengths_are_those_that_are_best_on_development_facts():
    dev = [
        rows("rome", left, "dev", scale=scale, change=change)
        for scale, left, change in ((0.5, 0.4, 0.0), (1.0, 0.1, 0.1), (2.0, 0.0, 0.9))
    ]
    held = rows("rome", 0.0, scale=2.0)
    assert chosen_strengths(pd.concat([*dev, held])) == {"rome": 1.0}
    assert chosen_strengths(held) == {}


def test_a_run_stands_beside_the_published_results():
    many = leaderboard(pd.concat([rows("memit", 0.1, subject=f"s{i}") for i in range(5)]))
    own = leaderboard(
        pd.concat([rows("rome", 0.3), rows("memit", 0.0)]), verdicts={"rome": "hidden"}
    )
    table = beside(own, many).set_index("method")
    assert list(table.index) == ["memit", "rome"]  # a method that was not published comes last
    assert table.loc["memit", "forgetting, published"].startswith("0.875 [")
    assert table.loc["rome", ["forgetting, published", "verdict"]].tolist() == ["–", "hidden"]
    assert table.loc["rome", "forgetting, here"] == "0.625"


def test_what_the_repository_publishes_is_whole():
    table = published()
    assert not table.duplicated([*IDENTITY, "metric"]).any()
    assert table["value"].notna().all()
    assert not module.PUBLISHED.exists() or module.PUBLISHED.stat().st_size < 2e6


def test_parts_of_several_machines_come_together(tmp_path):
    path = tmp_path / "facts.parquet"
    publish(path, pd.concat([rows("rome", 0.5), rows("memit", 0.4)]))
    measured_elsewhere = {1: rows("rome", 0.1), 2: rows("npo", 0.2)}
    for number, part in measured_elsewhere.items():
        publish(tmp_path / PARTS.format(number, 2), part)
    table = take_in_parts(path)
    left = table[table["metric"] == "paraphrases"].set_index("method")["value"]
    assert left.round(6).to_dict() == {"memit": 0.4, "rome": 0.1, "npo": 0.2}
    assert [file.name for file in tmp_path.iterdir()] == ["facts.parquet"]
    pd.testing.assert_frame_equal(published(path), table)
    pd.testing.assert_frame_equal(take_in_parts(path), table)


def test_a_damaged_part_loses_nothing(tmp_path):
    path, part = tmp_path / "facts.parquet", tmp_path / PARTS.format(2, 2)
    publish(path, rows("rome", 0.5))
    publish(tmp_path / PARTS.format(1, 2), rows("memit", 0.1))
    before = path.read_bytes()
    part.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=part.name):
        take_in_parts(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("n", [1, 2, 7])
def test_each_measurement_is_of_one_part_and_each_part_has_some(n):
    jobs = [(m, f"fact {i}", seed) for m in METHODS for i in range(5) for seed in range(2)]
    parts = [part_of(*job, n) for job in jobs]
    assert set(parts) == set(range(1, n + 1))
    assert parts == [part_of(*job, n) for job in jobs]
