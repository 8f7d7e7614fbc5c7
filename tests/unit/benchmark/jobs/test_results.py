"""Result files are whole or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from fedpalm.benchmark.jobs.engine import undone
from fedpalm.benchmark.jobs.results import whole
from fedpalm.errors import DataError, IntegrityError
from tests.unit.benchmark.palm.conftest import canned_result, tiny_job


def test_a_result_is_read_back_with_its_scores(store):
    job = tiny_job()
    canned_result(store, job, 0.5)
    result, scores = store.read(job.hash), store.scores(job.hash)
    assert result["job"] == job.hash and result["variant"] == "fedavg"
    assert scores["open/site-1/genuine"].dtype == np.float16
    assert undone([job, tiny_job("local")], store) == [tiny_job("local")]


@pytest.mark.parametrize("old, new", [('"seed": 0', '"seed": 1'), ("}", ""), ('"job"', '"jab"')])
def test_a_changed_or_cut_result_is_found_out_and_made_again(store, old, new):
    job = tiny_job()
    canned_result(store, job, 0.5)
    path = store.result_file(job.hash)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(IntegrityError, match="damaged"):
        store.read(job.hash)
    assert undone([job], store) == [job]


def test_a_result_under_another_name_is_not_that_result(store):
    job, other = tiny_job(), tiny_job("local")
    canned_result(store, job, 0.5)
    store.result_file(job.hash).rename(store.result_file(other.hash))
    with pytest.raises(IntegrityError):
        store.read(other.hash)


def test_damaged_scores_are_found_out_and_made_again(store):
    job = tiny_job()
    canned_result(store, job, 0.5)
    path = store.scores_file(job.hash)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match="scores"):
        store.scores(job.hash)
    assert undone([job], store) == [job]


def test_figures_can_be_read_without_the_scores(store):
    job = tiny_job()
    canned_result(store, job, 0.5)
    store.scores_file(job.hash).unlink()
    assert store.scores(job.hash) is None
    assert [one["job"] for one in store.everything()] == [job.hash]
    assert undone([job], store) == [job]


def test_a_result_that_is_not_there_is_said_to_be_missing(store):
    with pytest.raises(DataError, match="no such result"):
        store.read("0" * 24)


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    target = tmp_path / "file"
    target.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole(target) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]
