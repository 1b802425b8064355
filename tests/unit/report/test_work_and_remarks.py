"""The page's tables of work and of remarks: every figure of the costs, every sentence, escaped."""

from __future__ import annotations

from dataclasses import replace

from nanoflux_export.remarks import remarks
from nanoflux_export.report.notes import remark_list
from nanoflux_export.report.work_table import work_table
from nanoflux_mobile.cost import BlockCost, Cost
from nanoflux_mobile.manifest import Hazard, Unmet

MEAN = "<b>&</b>"


def cost() -> Cost:
    blocks = (
        BlockCost("denoiser", "step_low", "a", 1_000_000, 3_000, 5_000, 0, 7),
        BlockCost("denoiser", "step_low", "b", 234_567, 2_000, 1_000, 0, 5),
        BlockCost("denoiser", "step_full", "a", 9, 1, 1, 0, 1),
        BlockCost("decoder", "main", "a", 1, 1, 1, 0, 1),
    )
    return Cost("cost/1", "coreml", blocks, 3)


def test_every_function_is_a_row_with_its_sums() -> None:
    page = str(work_table({"tiny-coreml": cost()}))
    assert page.count("<td>tiny-coreml</td>") == 3
    assert "1,234,567" in page
    assert ">12<" in page
    assert "5.0 kB" in page
    assert "6.0 kB" in page
    assert ">3<" in page


def test_without_costs_there_is_no_table() -> None:
    assert str(work_table({})) == ""


def test_names_are_text_and_no_markup() -> None:
    assert MEAN not in str(work_table({MEAN: cost()}))


def test_what_was_not_met_is_told(manifest) -> None:
    unmet = Unmet("denoiser", "palette4", "int8", 21, MEAN)
    told = replace(manifest(), unmet=(unmet,), hazards=())
    (sentence,) = remarks(told)
    assert sentence == f"denoiser: 21 layers asked as palette4, stored as int8: {MEAN}"
    page = str(remark_list([told]))
    assert "21 layers" in page
    assert MEAN not in page


def test_a_value_that_nothing_mends_comes_first_and_folded_ones_are_one_sentence(
    manifest,
) -> None:
    hazards = (
        Hazard("denoiser", "a:square", 60000.0, True),
        Hazard("text_encoder", "b:add", 7e4, False),
        Hazard("denoiser", "c:square", 63000.0, True),
    )
    first, second = remarks(replace(manifest(), unmet=(), hazards=hazards))
    assert "text_encoder: b:add passes the end of half precision with 70000 of 65504" in first
    assert "2 operations" in second
    assert "c:square with 63000" in second


def test_a_bundle_that_is_as_asked_says_nothing(manifest) -> None:
    assert str(remark_list([replace(manifest(), unmet=(), hazards=())])) == ""
