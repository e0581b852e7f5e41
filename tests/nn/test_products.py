"""Matrix products, with compiled ones and without."""

import itertools

import pytest
import torch

from recurra.nn import native
from recurra.nn.products import linear, prepared, product


@pytest.fixture(params=["compiled", "without"], autouse=True)
def each_way(request, monkeypatch):
    if request.param == "without":
        monkeypatch.setattr(native, "available", lambda: False)
    elif not native.available():
        pytest.skip("compiles nothing")


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


SIZES = [(1, 1, 1), (3, 40, 5), (12, 32, 256), (13, 33, 257), (300, 70, 20), (25, 1100, 600), (500, 33, 700)]


@pytest.mark.parametrize(("rows", "columns", "depth"), SIZES)
def test_product(rows, columns, depth):
    a, b = torch.randn(rows, depth), torch.randn(depth, columns)
    wanted = a.double() @ b.double()
    for left in (a, a.t().contiguous().t()):
        close(product(left, b), wanted.float())
        for add, width in itertools.product((False, True), (0, 3)):
            room = torch.ones(rows, columns + width)
            product(left, b, out=room[:, :columns], add=add)
            close(room[:, :columns], (wanted + add).float())
            assert (room[:, columns:] == 1).all()


def test_product_of_parts():
    a, b = torch.randn(40, 90), torch.randn(40, 60)
    for rows, columns in itertools.product((slice(0, 30), slice(30, 90)), (slice(0, 60), slice(7, 40))):
        close(product(a[:, rows].t(), b[:, columns]), a[:, rows].t() @ b[:, columns])
        close(product(a[:, rows].t(), b.t().contiguous().t()[:, columns]), a[:, rows].t() @ b[:, columns])


def test_product_of_nothing():
    assert product(torch.zeros(0, 4), torch.zeros(4, 3)).shape == (0, 3)
    assert product(torch.zeros(2, 4), torch.zeros(4, 0)).shape == (2, 0)
    assert not product(torch.zeros(2, 0), torch.zeros(0, 3)).any()
    room = torch.ones(2, 3)
    product(torch.zeros(2, 0), torch.zeros(0, 3), out=room, add=True)
    assert (room == 1).all()


def test_product_in_double_precision():
    a, b = torch.randn(50, 30, dtype=torch.double), torch.randn(30, 40, dtype=torch.double)
    torch.testing.assert_close(product(a, b), a @ b)


@pytest.mark.parametrize("rows", [0, 1, 8, 9, 50])
@pytest.mark.parametrize("features", [3, 16, 70])
def test_linear(rows, features):
    input, weight, bias = torch.randn(rows, features), torch.randn(45, features), torch.randn(45)
    close(linear(input, weight, bias), torch.nn.functional.linear(input, weight, bias))
    close(prepared(weight, bias)(input), torch.nn.functional.linear(input, weight, bias))
    close(linear(input, weight.t().contiguous().t()), input @ weight.t())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_a_product(threads):
    before = torch.get_num_threads()
    a, b = torch.randn(700, 130), torch.randn(130, 90)
    try:
        torch.set_num_threads(threads)
        close(product(a, b), a @ b)
    finally:
        torch.set_num_threads(before)
