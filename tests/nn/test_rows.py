"""Tables read by rows, against plain indexing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from recurra.nn.rows import is_row_sparse, rows, set_row_sparse, tables

IDS = torch.tensor([[3, 0, 3], [5, 3, 1]])
SHAPES = [(6,), (6, 4), (6, 2, 3)]


def table(*shape, sparse):
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(*shape, dtype=torch.float64))
    set_row_sparse(parameter, sparse)
    return parameter


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_indexing(shape, sparse):
    parameter = table(*shape, sparse=sparse)
    found, expected = rows(parameter, IDS), parameter[IDS]
    assert torch.equal(found, expected)
    weights = torch.randn_like(expected)
    (grad,) = torch.autograd.grad((found * weights).sum(), parameter)
    (reference,) = torch.autograd.grad((expected * weights).sum(), parameter)
    assert grad.is_sparse == sparse
    torch.testing.assert_close(grad.to_dense(), reference)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sparse_gradient_holds_whole_rows_and_only_those_read(shape):
    parameter = table(*shape, sparse=True)
    rows(parameter, IDS).sum().backward()
    grad = parameter.grad
    assert (grad.sparse_dim(), grad.dense_dim()) == (1, len(shape) - 1)
    assert grad._indices().tolist() == [IDS.flatten().tolist()]
    assert grad.coalesce().indices().tolist() == [[0, 1, 3, 5]]


def test_gradients_of_two_readers_add_up():
    parameter = table(6, 4, sparse=True)
    scores = rows(parameter, IDS[0]) @ rows(parameter, torch.tensor([2, 3])).t()  # as a tied output layer does
    scores.square().sum().backward()
    dense = parameter.detach().clone().requires_grad_()
    (dense[IDS[0]] @ dense[[2, 3]].t()).square().sum().backward()
    assert parameter.grad.is_sparse
    torch.testing.assert_close(parameter.grad.to_dense(), dense.grad)
    (rows(parameter, IDS).sum() + parameter.square().sum()).backward()  # and with one that reads all of it
    (dense[IDS].sum() + dense.square().sum()).backward()
    torch.testing.assert_close(parameter.grad.to_dense(), dense.grad)


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_can_be_differentiated_again(sparse):
    parameter = table(6, 2, sparse=sparse)
    found = []
    for read in (rows, lambda values, ids: values[ids]):
        (grad,) = torch.autograd.grad(read(parameter, IDS).pow(3).sum(), parameter, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), parameter)[0].to_dense())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("wrong", [-1, 6])
def test_an_id_that_is_no_row_is_refused(wrong, sparse):
    with pytest.raises(IndexError):
        rows(table(6, 2, sparse=sparse), torch.tensor([0, wrong]))


class Reader(nn.Module):
    read_by_rows = ("weight",)

    def __init__(self, weight):
        super().__init__()
        self.weight, self.other = weight, nn.Parameter(torch.zeros(1))


def test_a_table_is_what_all_of_its_owners_read_by_rows():
    shared, whole = nn.Parameter(torch.zeros(4, 2)), nn.Linear(2, 4)
    first, second, mixed = Reader(shared), Reader(shared), Reader(whole.weight)
    ((found, owners),) = tables(nn.ModuleList([first, second, mixed, whole]))
    assert found is shared
    assert owners == [first, second]


def test_nothing_is_sparse_unless_said():
    parameter = nn.Parameter(torch.zeros(3))
    assert not is_row_sparse(parameter)
    set_row_sparse(parameter, True)
    assert is_row_sparse(parameter)
    assert not is_row_sparse(copy.deepcopy(parameter))  # whose optimiser has not spoken yet
