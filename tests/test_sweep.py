"""Sweeps: the space and its points, who proposes, what is remembered; and on a real Ray, trials that are killed and judged."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import tree
from hypothesis import given
from hypothesis import strategies as st

from segdist import config
from segdist.config.reading import validate
from segdist.config.sweep import Dimension, Sweep
from segdist.distributed import World
from segdist.errors import ConfigError, StorageError, UserError
from segdist.launch.ray_cluster import room
from segdist.sweep import best, ledger, plan
from segdist.sweep.ledger import FAILED, RUNNING, STOPPED, SUCCEEDED, WAITING, Trial
from segdist.sweep.search import num_trials, points_to_check, propose
from segdist.sweep.space import clip, draw, grid, is_active, point_key, points, quantised, value_at
from segdist.sweep.tune import check_unchanged, identity_of, open_ledger
from segdist.train.loop import fit

LR = {"optim.lr": {"loguniform": [1e-6, 1.0]}}


def dimension(**given: Any) -> Dimension:
    return Dimension.model_validate_json(json.dumps(given))


def sweep(**fields: Any) -> Sweep:
    return validate(Sweep, {"uri": "sweep", "config": "base.yaml", "space": LR, **fields}, "test")


# the space


@given(st.floats(1e-9, 1e9), st.floats(1.0001, 1e6), st.floats(0, 1, exclude_max=True))
def test_a_drawn_value_lies_in_its_range(least: float, ratio: float, u: float) -> None:
    most = least * ratio
    for kind in ("uniform", "loguniform"):
        assert least * (1 - 1e-9) <= value_at(dimension(**{kind: [least, most]}), u) <= most * (1 + 1e-9)


@given(st.integers(-50, 50), st.integers(1, 9), st.integers(1, 30), st.floats(0, 1, exclude_max=True))
def test_quniform_gives_its_steps_alone_and_integers_where_they_are(least: int, step: int, num: int, u: float) -> None:
    values = dimension(quniform=[least, least + step * num, step])
    found = value_at(values, u)
    assert isinstance(found, int) and found in range(least, least + step * num + 1, step)
    assert quantised(values, found + 0.4 * step) == found
    assert clip(values, 1e9) == least + step * num and clip(values, -1e9) == least


def test_every_step_of_quniform_is_as_likely() -> None:
    rng = random.Random(0)
    found = [value_at(dimension(quniform=[0.1, 0.5, 0.1]), rng.random()) for _ in range(5000)]
    assert sorted(set(found)) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert all(900 < found.count(value) < 1100 for value in set(found))


def test_loguniform_is_even_in_the_logarithm() -> None:
    rng = random.Random(0)
    found = [value_at(dimension(loguniform=[1e-4, 1.0]), rng.random()) for _ in range(4000)]
    assert all(900 < sum(low <= v < 10 * low for v in found) < 1100 for low in (1e-4, 1e-3, 1e-2, 1e-1))


def test_points_are_a_pure_function_of_space_and_seed_and_never_repeat() -> None:
    space = sweep(space={**LR, "data.flip_prob": {"choice": [0, 0.5]}}).space
    first = list(itertools.islice(points(space, 3), 20))
    assert first == list(itertools.islice(points(space, 3), 20)) != list(itertools.islice(points(space, 4), 20))
    assert len({point_key(point) for point in first}) == 20
    small = sweep(
        space={"data.flip_prob": {"choice": [0, 0.5, 1]}, "optim.warmup_steps": {"quniform": [0, 10, 5]}}
    ).space
    assert len(list(points(small, 0))) == 9  # all there are, each once


def test_points_are_those_of_the_first_release() -> None:
    """A sweep that is continued by a later version goes on with the same points."""
    space = sweep(space={**LR, "data.flip_prob": {"choice": [0, 0.5]}}).space
    found = list(itertools.islice(points(space, 3), 2))
    assert [f"{p['optim.lr']:.6e} {p['data.flip_prob']}" for p in found] == POINTS


POINTS = ["1.297956e-03 0.5", "2.914711e-03 0"]


def test_a_field_with_a_condition_varies_only_where_that_holds() -> None:
    space = sweep(
        space={
            "loss.dice": {"choice": [0.0, 1.0]},
            "loss.tversky": {"uniform": [0, 1], "when": {"loss.dice": [1.0]}},
        }
    ).space
    found = [draw(space, random.Random(n)) for n in range(50)]
    assert all(("loss.tversky" in point) == (point["loss.dice"] == 1.0) for point in found)
    assert {point["loss.dice"] for point in found} == {0.0, 1.0}
    assert not is_active(space["loss.tversky"], {})


def test_a_grid_is_gone_through_once_and_conditions_make_no_doubles() -> None:
    asked = sweep(
        space={
            "loss.dice": {"grid": [0.0, 1.0]},
            "loss.tversky": {"grid": [0.0, 0.5, 1.0], "when": {"loss.dice": [1.0]}},
        }
    )
    assert len(grid(asked.space)) == 4 == num_trials(asked) == len(list(points(asked.space, 0)))
    mixed = sweep(space={"loss.dice": {"grid": [0.0, 1.0]}, **LR}, budget={"num_trials": 6})
    dice = [point["loss.dice"] for point in points_to_check(mixed)]
    assert dice == [0.0, 1.0] * 3
    huge = {key: {"grid": list(range(100))} for key in ("optim.warmup_steps", "optim.lr", "loss.dice")}
    with pytest.raises(ConfigError, match="1000000 points"):
        num_trials(sweep(space=huge))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"space": {"optim.lrr": {"choice": [1]}}}, "nearest is `optim.lr`"),
        ({"space": {"optim.lr": {"choice": [1], "grid": [1]}}}, "exactly one of choice, grid, uniform"),
        ({"space": {"optim.lr": {"uniform": [2, 1]}}}, "space.optim.lr: uniform .*min below max"),
        ({"space": {"optim.lr": {"loguniform": [0, 1]}}}, "min must be above 0"),
        ({"space": {"optim.lr": {"quniform": [0, 1, 0]}}}, "the step must be above 0"),
        ({"space": {"optim.lr": {"unifrom": [0, 1]}}}, "unknown key `space.optim.lr.unifrom`"),
        ({"space": {}}, "at least 1"),
        ({"space": {"eval.scales": {"choice": [[1.0]]}}}, "space.eval.scales: .*Set it in `set`"),
        ({"space": {"data.uri": {"choice": ["a", "b"]}}}, "space.data.uri: .*Set it in `set`"),
        ({"space": {"train.seed": {"choice": [1, 2]}}}, "trials that differ in it are not comparable"),
        ({"space": {"optim.lr": {"choice": [1], "when": {"loss.dice": [1]}}}}, "must be listed in the space above it"),
        ({"searcher": "tpe", "space": {"optim.lr": {"grid": [1]}}}, "searcher=tpe draws random values. Use `choice`"),
        (
            {"scheduler": {"name": "pbt"}, "space": {"data.flip_prob": {"uniform": [0, 1]}}},
            "only optim and loss may vary",
        ),
        ({"scheduler": {"name": "pbt"}, "searcher": "tpe"}, "Remove searcher"),
        ({"scheduler": {"name": "hyperband"}, "searcher": "tpe"}, "searcher=tpe cannot learn from earlier ones"),
        ({"scheduler": {"name": "hyperband"}, "max_concurrent": 2}, "Remove max_concurrent"),
        ({"scheduler": {"grace_steps": 10}}, "scheduler.grace_steps has no effect with scheduler.name=none"),
        ({"budget": {"dollars": 10}}, "budget.dollars needs budget.dollars_per_hour"),
        ({"metrics": "miou"}, "nearest valid key is `metric`"),
    ],
)
def test_a_mistake_in_a_sweep_file_is_told_with_its_remedy(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep(**fields)


# who proposes


def scored(asked: Sweep, trials: list[Trial], point: dict[str, Any], score: float, state: str = SUCCEEDED) -> None:
    trials.append(Trial(f"{len(trials):04d}", point, f"trials/{len(trials):04d}", state))
    trials[-1].add_score(10, score, 1.0)


def test_random_proposals_go_on_where_they_were() -> None:
    asked, trials = sweep(budget={"num_trials": 5}), list[Trial]()
    expected = points_to_check(asked)
    while (point := propose(asked, trials)) is not None:
        scored(asked, trials, point, 0.5)
    assert [trial.values for trial in trials] == expected and len(trials) == 5


def test_tpe_learns_also_from_trials_of_an_earlier_launch() -> None:
    asked = sweep(searcher="tpe", budget={"num_trials": 60}, space={**LR, "data.flip_prob": {"choice": [0, 0.5]}})

    def miss(point: dict[str, Any]) -> float:
        return abs(torch.log10(torch.tensor(point["optim.lr"])).item() + 3)

    trials: list[Trial] = []
    for number in range(40):
        point = propose(asked, trials)
        assert point is not None
        state = (SUCCEEDED, SUCCEEDED, STOPPED, FAILED, RUNNING)[number % 5]
        scored(asked, trials, point, 1 - miss(point) / 3, state)
        if state == FAILED:
            trials[-1].scores.clear()
    # of another launch
    trials = ledger.trials_of(json.loads(json.dumps({"trials": [asdict(trial) for trial in trials]})))
    late = []
    for _ in range(15):
        point = propose(asked, trials)
        assert point is not None
        late.append(miss(point))
        scored(asked, trials, point, 1 - late[-1] / 3)
    assert sorted(late)[7] < 0.75 < sorted(miss(trial.values) for trial in trials[:10])[5]


def test_a_space_that_is_exhausted_ends_a_sweep() -> None:
    asked = sweep(searcher="tpe", space={"data.flip_prob": {"choice": [0, 0.5, 1]}})
    trials: list[Trial] = []
    while (point := propose(asked, trials)) is not None:
        scored(asked, trials, point, 0.5)
    assert sorted(trial.values["data.flip_prob"] for trial in trials) == [0, 0.5, 1]


# the plan


@pytest.fixture
def make_plan(street_data: str, tmp_path: Path) -> Callable[..., plan.Plan]:
    """make_plan(base={section: fields}, field=...) -> the plan of a small sweep below tmp_path, written and read."""

    def make(
        base: dict[str, Any] | None = None, uri: str | None = None, data: str = street_data, **fields: Any
    ) -> plan.Plan:
        one = tree(data, "unused", **(base or {}))
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(one), encoding="utf-8")
        asked = {"uri": uri or str(tmp_path / "sweep"), "config": "base.yaml", "space": LR, **fields}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
        return plan.read(str(tmp_path / "sweep.yaml"))

    return make


def test_a_trial_is_the_config_with_what_is_set_and_its_values(make_plan: Callable[..., plan.Plan]) -> None:
    found = make_plan(base={"hub": {"repo_id": "me/best"}}, set={"train": {"num_steps": 2}})
    trial = found.config({"optim.lr": 0.5, "data.flip_prob": 0.0}, "trials/0000")
    assert (trial.train.num_steps, trial.optim.lr, trial.data.flip_prob, trial.train.seed) == (2, 0.5, 0.0, 3)
    assert trial.hub.repo_id is None and trial.run.uri == "trials/0000"
    others = make_plan(
        set={"train": {"num_steps": 2, "global_batch_size": 2}, "optim": {"name": "sgd", "warmup_steps": 0}}
    )
    whole = others.full({"optim.lr": 0.5}, "best")
    assert (whole.train.num_steps, whole.optim.warmup_steps) == (4, 1)  # the length is the config's own
    assert (whole.train.global_batch_size, whole.optim.name) == (2, "sgd")  # and all else as in the trials
    full = found.full({"optim.lr": 0.5}, "best")
    assert (full.train.num_steps, full.optim.lr, full.hub.repo_id) == (4, 0.5, "me/best")
    again = found.config({"optim.lr": 0.5}, "again", seed=4)
    assert again.train.seed == 4 and again.eval.num_samples is None
    rest = found.continued(full, 3, "donor")
    assert (rest.train.num_steps, rest.train.init_from, rest.optim.warmup_steps) == (1, "donor", 0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"space": {"train.global_batch_size": {"choice": [4, 512]}}},
            "split has 15 samples, but train.global_batch_size=512",
        ),
        ({"space": {"optim.warmup_steps": {"quniform": [0, 8, 4]}}}, "optim.warmup_steps 4 must be below"),
        ({"space": {"train.global_batch_size": {"choice": [3]}}}, "1 kind.*\n.*global_batch_size 3 is not a multiple"),
        ({"space": {"loss.class_weights": {"choice": [[1.0, 2.0]]}}}, "class_weights"),
        ({"space": {"optim.lr": {"choice": ["fast"]}}}, "`optim.lr`: Input should be a valid number"),
        ({"set": {"data": {"uri": "nowhere"}}}, "nowhere"),
        ({"set": {"trian": {}}}, "unknown key `trian`"),
    ],
)
def test_every_trial_is_checked_before_the_first_begins(
    make_plan: Callable[..., plan.Plan], fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    found = make_plan(**fields)
    with pytest.raises(UserError, match=said):
        plan.check(found)
    assert not (tmp_path / "sweep").exists() or not any((tmp_path / "sweep").iterdir())


def test_what_an_earlier_launch_has_begun_is_no_mistake_of_the_next(
    make_plan: Callable[..., plan.Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    found = make_plan(searcher="tpe", budget={"num_trials": 3})
    fit(found.config({"optim.lr": 0.5}, f"{found.sweep.uri}/trials/0000"), World(0, 1, torch.device("cpu")))
    capsys.readouterr()
    plan.check(found)  # of a learning searcher, the first trial is not the first point that it might try
    assert "nothing to do" not in capsys.readouterr().err


def test_a_population_wants_a_constant_schedule(make_plan: Callable[..., plan.Plan]) -> None:
    with pytest.raises(ConfigError, match=r"set\.optim\.schedule=constant"):
        make_plan(scheduler={"name": "pbt"})
    assert (
        make_plan(scheduler={"name": "pbt"}, set={"optim": {"schedule": "constant"}})
        .config({}, "a")
        .checkpoint.keep_last
        >= 5
    )


def test_a_sweep_file_that_is_not_there_is_told(tmp_path: Path, make_plan: Callable[..., plan.Plan]) -> None:
    with pytest.raises(ConfigError, match="no such sweep file"):
        plan.read(str(tmp_path / "none.yaml"))
    make_plan()
    (tmp_path / "base.yaml").unlink()
    with pytest.raises(ConfigError, match=r"no such config, which .*sweep\.yaml names"):
        plan.read(str(tmp_path / "sweep.yaml"))


# what is remembered


def test_a_ledger_comes_back_as_it_was_saved(make_plan: Callable[..., plan.Plan]) -> None:
    found = make_plan()
    book = open_ledger(found, {}, False)
    scored(found.sweep, book.trials, {"optim.lr": 0.5}, 0.25)
    book.trials[0].add_score(12, None, 2.0)
    book.save()
    facts, trials = ledger.read(found.sweep.uri)
    assert [(s.step, s.miou, s.loss) for s in trials[0].scores] == [(10, 0.25, 1.0), (12, None, 2.0)]
    assert trials[0].best("miou") == 0.25 and trials[0].best("loss") == 1.0 and facts["state"] == RUNNING


def test_an_older_driver_stops_when_a_newer_one_has_the_sweep(make_plan: Callable[..., plan.Plan]) -> None:
    found = make_plan()
    old = open_ledger(found, {}, False)
    open_ledger(found, {}, False)
    with pytest.raises(StorageError, match="has taken this sweep over"):
        old.save()


def test_a_sweep_does_not_go_on_as_another_one(make_plan: Callable[..., plan.Plan]) -> None:
    found = make_plan()
    open_ledger(found, {}, False)
    known = ledger.load(found.sweep.uri)
    assert known is not None

    def refuse(other: plan.Plan) -> None:
        check_unchanged("sweep", known["identity"], identity_of(other))

    refuse(make_plan(budget={"num_trials": 99}, max_concurrent=2))
    with pytest.raises(ConfigError, match="space"):
        refuse(make_plan(space={"optim.lr": {"loguniform": [1e-6, 2.0]}}))
    with pytest.raises(ConfigError, match=r"config\.data\.crop_size: \[32, 48\] -> \[32, 32\]"):
        refuse(make_plan(set={"data": {"crop_size": [32, 32]}}))


@pytest.mark.parametrize("text", ["{", "[]", '{"trials": []}', '{"trials": [{"id": 1}]}', '{"trials": 3}'])
def test_a_damaged_record_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text, encoding="utf-8")
    with pytest.raises(StorageError, match="not a sweep's record"):
        ledger.load(str(tmp_path))


def test_what_a_run_did_after_the_drivers_last_word_is_taken_over(make_plan: Callable[..., plan.Plan]) -> None:
    found = make_plan()
    book = open_ledger(found, {}, False)
    book.trials += [
        Trial("0000", {"optim.lr": 1e-3}, "trials/0000", RUNNING),
        Trial("0001", {}, "trials/0001", RUNNING),
    ]
    book.save()
    fit(found.config({"optim.lr": 1e-3}, f"{found.sweep.uri}/trials/0000"), World(0, 1, torch.device("cpu")))
    again = open_ledger(found, {}, False)
    done, waits = again.trials
    assert (done.state, [score.step for score in done.scores]) == (SUCCEEDED, [2, 4])
    assert (waits.state, waits.scores) == (WAITING, [])


def test_the_best_is_named_by_the_mean_over_seeds_and_told_by_the_others_alone(
    make_plan: Callable[..., plan.Plan],
) -> None:
    found = make_plan(confirm={"num_best": 2})
    book = open_ledger(found, {}, False)
    for score, state in ((0.5, SUCCEEDED), (0.6, SUCCEEDED), (0.9, STOPPED), (0.4, SUCCEEDED), (0.95, FAILED)):
        scored(found.sweep, book.trials, {"optim.lr": score}, score, state)
    again = best.confirmations(found, book)
    assert [(trial.id, trial.seed, trial.values) for trial in again] == [
        ("0001-seed-4", 4, {"optim.lr": 0.6}),
        ("0000-seed-4", 4, {"optim.lr": 0.5}),
    ]
    book.trials += again
    for trial, score in zip(again, (0.2, 0.48)):
        trial.add_score(10, score, 1.0)
        trial.state = SUCCEEDED
    assert best.confirmations(found, book) == again  # none is made twice
    named = best.name_best(found, book)
    assert named is not None
    assert (named["trial"], named["score"], named["scores"], named["confirmed"]) == ("0000", 0.48, [0.48], True)
    address = best.write_config(found, named)
    cfg = config.load(address)
    assert (cfg.optim.lr, cfg.run.uri) == (0.5, f"{found.sweep.uri}/best")


@pytest.mark.parametrize("state", [WAITING, RUNNING, FAILED, STOPPED])
def test_a_confirmation_that_did_not_end_counts_for_nothing(make_plan: Callable[..., plan.Plan], state: str) -> None:
    found = make_plan(confirm={"num_best": 2})
    book = open_ledger(found, {}, False)
    for score in (0.5, 0.6):
        scored(found.sweep, book.trials, {"optim.lr": score}, score)
    book.trials += best.confirmations(found, book)
    cut, whole = book.trials[2:]
    cut.add_score(2, 0.1, 1.0)
    cut.state = state
    whole.add_score(10, 0.4, 1.0)
    whole.state = SUCCEEDED
    named = best.name_best(found, book)
    assert named is not None and (named["trial"], named["score"]) == ("0000", 0.4)  # the only one that was confirmed


def test_an_extended_sweep_can_name_a_new_best(make_plan: Callable[..., plan.Plan]) -> None:
    found = make_plan(confirm={"num_best": 1})
    book = open_ledger(found, {}, False)
    scored(found.sweep, book.trials, {"optim.lr": 0.5}, 0.5)
    book.trials += best.confirmations(found, book)
    book.trials[1].add_score(10, 0.5, 1.0)
    book.trials[1].state = SUCCEEDED
    book.trials.append(Trial("0001", {"optim.lr": 0.9}, "trials/0001", SUCCEEDED))
    book.trials[2].add_score(10, 0.9, 1.0)
    (again,) = best.confirmations(found, book)
    assert again.confirms == "0001"
    book.trials.append(again)
    again.add_score(10, 0.8, 1.0)
    again.state = SUCCEEDED
    named = best.name_best(found, book)
    assert named is not None and (named["trial"], named["score"]) == ("0001", 0.8)


def test_what_a_budget_cut_off_is_ranked_by_its_score(make_plan: Callable[..., plan.Plan]) -> None:
    found = make_plan()
    book = open_ledger(found, {}, False)
    scored(found.sweep, book.trials, {"optim.lr": 0.5}, 0.05)
    scored(found.sweep, book.trials, {"optim.lr": 0.6}, 0.6, WAITING)
    named = best.name_best(found, book)
    assert named is not None and (named["trial"], named["confirmed"]) == ("0001", False)


def test_scores_on_a_part_of_the_split_do_not_count_beside_those_on_all(make_plan: Callable[..., plan.Plan]) -> None:
    found = make_plan(confirm={"num_best": 2}, base={"eval": {"num_samples": 2, "every_steps": 2}})
    book = open_ledger(found, {}, False)
    for score in (0.5, 0.9):
        scored(found.sweep, book.trials, {"optim.lr": score}, score)
    book.trials += best.confirmations(found, book)
    for trial, score in zip(book.trials[2:], (0.40, 0.45)):
        trial.add_score(10, score, 1.0)
        trial.state = SUCCEEDED
    named = best.name_best(found, book)
    assert named is not None and named["trial"] == "0000"  # 0.45 on all samples; 0.9 was on two


def test_a_score_that_is_no_number_is_none(make_plan: Callable[..., plan.Plan]) -> None:
    trials = [Trial(f"{n:04d}", {}, "run", SUCCEEDED) for n in range(3)]
    for trial, score in zip(trials, (0.7, float("nan"), 0.9)):
        trial.add_score(2, score, float("inf"))
    assert [trial.id for trial in ledger.ranked(trials, "miou")] == ["0002", "0000"]
    assert trials[0].best("loss") is None


def test_a_member_that_took_anothers_weights_is_judged_by_what_it_is_now() -> None:
    trial = Trial("0000", {}, "trials/0000", SUCCEEDED)
    trial.add_score(2, 0.7, 1.0)
    trial.run, trial.offset = "trials/0000-from-0001-step-00000002-aa", 2
    assert trial.best("miou") is None
    trial.add_score(4, 0.6, 1.0)
    assert trial.best("miou") == 0.6


@pytest.mark.parametrize(
    ("scale", "fits"),
    [
        ({}, 14),
        ({"num_ranks": 2, "launcher": "ray"}, 7),
        ({"num_ranks": 3, "launcher": "ray", "placement": "strict_pack"}, 3),
        ({"num_ranks": 3, "launcher": "ray", "placement": "strict_spread"}, 2),
        ({"num_ranks": 9, "launcher": "ray", "placement": "strict_pack"}, 0),
        ({"gpus_per_rank": 0.25}, 8),
    ],
)
def test_the_room_for_trials_is_known_from_the_nodes(scale: dict[str, Any], fits: int) -> None:
    nodes = [
        {"NodeManagerAddress": "a", "Resources": {"CPU": 8, "GPU": 2}},
        {"NodeManagerAddress": "b", "Resources": {"CPU": 4}},
        {"NodeManagerAddress": "c", "Resources": {"CPU": 2}},
    ]
    wanted = config.Scale.model_validate({"gpus_per_rank": 0, **scale})
    need = {"CPU": wanted.cpus_per_rank, **({"GPU": wanted.gpus_per_rank} if wanted.gpus_per_rank else {})}
    assert room(wanted, need, nodes) == fits


@pytest.mark.parametrize(("status", "may_commit"), [("RUNNING", True), ("PAUSED", False), ("PENDING", False)])
def test_a_sweep_waits_for_the_last_commit_of_a_trial_that_was_stopped_at_work_alone(
    make_plan: Callable[..., plan.Plan], status: str, may_commit: bool
) -> None:
    """A scheduler may stop one that it had paused, whose process has ended: nobody would ever say that it did."""
    from segdist.sweep.driver import TrialCallback

    trial = Trial("0000", {"optim.lr": 1.0}, "trials/0000", ledger.RUNNING)
    book = SimpleNamespace(trial=lambda id: trial, try_save=lambda: None)
    rounds: Any = SimpleNamespace(plan=make_plan(), ledger=book, stopping=None, committing={})
    tunes: Any = SimpleNamespace(trial_id="0000", status=status)
    TrialCallback(rounds, lambda: None).on_trial_complete(0, [], tunes)  # type: ignore[arg-type]
    assert trial.state == ledger.STOPPED
    assert set(rounds.committing) == ({"0000"} if may_commit else set())


@pytest.mark.parametrize(
    ("other", "is_alike"),
    [
        (
            "Training diverged at step 12: loss inf, gradient norm 3.1e+20. There is no checkpoint yet. Lower",
            True,
        ),
        ("crop_size 32 is less than 64; lower it", False),
    ],
)
def test_failures_are_alike_whatever_their_numbers_and_what_was_left_behind(other: str, is_alike: bool) -> None:
    from segdist.sweep.driver import _failure_kind

    reason = (
        "Training diverged at step 2: loss nan, gradient norm nan. The newest checkpoint from before that is a/step-1"
    )
    assert (_failure_kind(other) == _failure_kind(reason)) == is_alike


def test_a_draining_node_is_reported_once_and_so_is_the_same_warning_of_other_trials(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from segdist.launch.mailbox import DRAINING
    from segdist.sweep.driver import TrialRunner

    posts = [
        (DRAINING, "10.0.0.1"),
        (DRAINING, "10.0.0.1"),
        ("say", "trial 0: warning: x"),
        ("say", "trial 1: warning: x"),
    ]
    runner = object.__new__(TrialRunner)
    runner.inbox = SimpleNamespace(take=lambda seconds: (posts, None, 0.0))  # type: ignore[assignment]
    runner.committing, runner._shown = {}, set()
    runner.read_messages()
    said = capsys.readouterr().err
    assert said.count("node 10.0.0.1 is draining. Its trials commit") == 1 and said.count("warning: x") == 1


def test_a_trial_passes_warnings_on_and_nothing_else() -> None:
    from segdist.sweep.trial import _TrialScreen

    posted: list[tuple[str, ...]] = []
    screen = _TrialScreen(SimpleNamespace(post=SimpleNamespace(remote=lambda *post: posted.append(post))), "0001")
    for text in ("warning: node 10.0.0.1 is being drained. A checkpoint", "run s3://b/r, attempt 1", "Traceback (most"):
        screen.say(text)
    assert [post[1].split()[2] for post in posted] == ["warning:", "Traceback"]
