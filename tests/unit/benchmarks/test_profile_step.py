"""Operators by what they are for."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from benchmarks.profile_step import group_of, grouped


@pytest.mark.parametrize(
    ("operator", "group"),
    [
        ("mkldnn::_linear_pointwise", "gemm"),
        ("aten::addmm_", "gemm"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::index_copy_", "kv"),
        ("aten::_fused_rms_norm", "norm"),
        ("aten::max", "sampling"),
        ("aten::add", "other"),
    ],
)
def test_operators_have_groups(operator: str, group: str) -> None:
    assert group_of(operator) == group


def test_what_no_operator_accounts_for_is_python() -> None:
    found = grouped([("aten::mm", 0.25), ("aten::linear", 0.125), ("aten::add", 0.125)], wall=1.0)
    assert found == {"python": 0.5, "gemm": 0.375, "other": 0.125}
    assert list(found) == ["python", "gemm", "other"]
    assert grouped([("aten::mm", 2.0)], wall=1.0)["python"] == 0.0
